"""The fast forms of attention, dropout and the loss; `minigpt.model.reference` and `loss` are the readable ones."""
