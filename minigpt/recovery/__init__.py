"""What keeps a run from being lost: checkpoints, and what is done when training goes wrong."""

from minigpt.recovery.checkpoints import Checkpoints

__all__ = ["Checkpoints"]
