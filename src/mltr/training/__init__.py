"""From a recipe to trained weights: `train` is the command, `trainer` the loop.

The loop takes the steps of `step` with an objective, `labels` or a kind of it.
"""
