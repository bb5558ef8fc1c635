"""Read from torchrun's environment how many processes train together, and which of them this is.

A module of its own without torch, so that a command can ask before it imports torch.
"""

import os


def rank() -> int:
    """The number of this process: 0 for the first, and without torchrun."""
    return int(os.environ.get("RANK") or 0)


def world() -> int:
    """The number of processes: 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE") or 1)
