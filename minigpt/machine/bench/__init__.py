"""Benchmarks: what training, generating, tokenizing and preparing cost here, beside the machine's ceilings and rivals.

Every comparison runs in one process and takes turns (`timing.alternate`), so that a busy machine slows all alike.
The functions are imported from their own modules, so that the light ones do without torch.
"""
