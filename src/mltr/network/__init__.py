"""The network: `model` from windows to logits in one sitting, and what can stand in its parts.

`variants` is the table of sizes, `heads` turns maps into logits, `backbones` puts any timm network
in MlTr's place, and `resampling` fits positions and windows to another image size. No files here.
"""
