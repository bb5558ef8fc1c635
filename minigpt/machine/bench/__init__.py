"""Measure the speed of training, generating, tokenizing and preparing here, next to the machine's limits and rivals.

In every comparison the sides take turns in one process (`timing.alternate`), so a busy machine slows all of them down.
Import each function from its own module, so that modules without torch load quickly.
"""
