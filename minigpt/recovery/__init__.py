"""What keeps a run from being lost: checkpoints, and what is done when training goes wrong."""

from minigpt.recovery.checkpoints import Checkpoints
from minigpt.recovery.damage import newest_whole
from minigpt.recovery.guard import Guard
from minigpt.recovery.lock import run_lock

__all__ = ["Checkpoints", "Guard", "newest_whole", "run_lock"]
