"""The folder of a run: its files (`folder`) and its checkpoints (`checkpoints`)."""
