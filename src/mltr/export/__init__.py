"""Export of a run: ONNX (also int8), torch programs, and the Hugging Face Hub."""
