"""The network: `model` goes from windows to logits; the other modules are its alternatives.

`variants` is the table of sizes, `heads` turns maps into logits, `backbones` wraps any timm
network, and `resampling` adapts positions and windows to another image size. Nothing here reads or
writes files.
"""
