"""A run, taken elsewhere: ONNX (also int8) and torch programs, and the Hugging Face Hub."""
