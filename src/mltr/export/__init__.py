"""Export of a run: ONNX (also int8), torch programs, and the Hugging Face Hub.

`command` is `mltr export`: `writing` makes a file and `checking` compares it with the network.
`push` is the command for the Hub, `hub` does the upload and `card` writes the model card.
"""
