"""The folder of a run: which file is which (`folder`), and checkpoints (`checkpoints`)."""
