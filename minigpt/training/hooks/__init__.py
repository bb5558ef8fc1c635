"""Hooks of the training loop: everything in a run that is optional."""
