"""Everything optional of a run, as hooks of the training loop."""
