"""Compute attention, dropout and the loss fast. `minigpt.model.reference` and `loss` have the readable forms."""
