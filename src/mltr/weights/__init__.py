"""Weights on disk, and how weights are imported.

`bundle` saves and loads a network with everything that belongs to it; `metadata` is the part of a
bundle that needs no torch. `convert` and `foreign` read other projects' weights; `resize` adapts a
bundle to another image size.
"""
