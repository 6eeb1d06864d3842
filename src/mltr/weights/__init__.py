"""Weights on disk and where they come from.

`bundle` saves and loads a network with all that belongs to it; `metadata` is the part of a bundle
that needs no torch. `convert` and `foreign` read other projects' weights, `resize` fits a bundle to
another image size.
"""
