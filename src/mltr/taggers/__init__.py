"""Other people's taggers as bundles of ours: `mltr convert tagger`.

`labels` reads what a tagger calls its outputs, `graph` makes an ONNX file take pixels and return
logits as an exported run does; `command` finds out which kind of tagger it is.
"""
