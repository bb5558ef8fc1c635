"""Measure the speed of training, generating, tokenizing and preparing here, next to the machine's limits and rivals.

In every comparison the sides take turns in one process (`timing.alternate`), so a busy machine slows all of them down.
Import the functions from their own modules; so the light ones need no torch.
"""
