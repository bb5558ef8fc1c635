"""What keeps a run from being lost: checkpoints, and what is done when training goes wrong."""

from minigpt.recovery.checkpoints import Checkpoints
from minigpt.recovery.guard import Guard
from minigpt.recovery.lock import run_lock
from minigpt.weights.damage import newest_whole

__all__ = ["Checkpoints", "Guard", "newest_whole", "run_lock"]
