"""From a recipe to trained weights: `train` is the command, `trainer` the loop."""
