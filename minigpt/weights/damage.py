"""Find the newest undamaged checkpoint of a run, and rename the damaged ones."""

from collections.abc import Callable
from pathlib import Path

from minigpt.console import counted
from minigpt.errors import CheckpointError, DamagedError
from minigpt.layout import LAST, step_of
from minigpt.weights import checkpoint
from minigpt.weights.aside import set_aside
from minigpt.weights.checkpoint import Checkpoint

PARTS = ("model", "adapter", "ema", "optimizer")


def newest_whole(folder: Path, say: Callable[[str], object]) -> Checkpoint | None:
    """Find the checkpoint from which a run continues: the one that `last` names, else the newest undamaged one.

    A damaged checkpoint is renamed to damaged-step-00000500, and one line says so. Every byte is read once.

    Raises:
        CheckpointError: the checkpoint has another format.
        StorageError: a checkpoint cannot be renamed.
    """
    damaged: list[Path] = []
    while True:
        checkpoint.restore(folder)  # each time: of a damaged checkpoint, the one that it replaced may still be there
        try:
            target = checkpoint.resolve(folder / LAST)
        except CheckpointError:  # there is none
            saved = None
            break
        try:
            saved = checkpoint.load(target, PARTS)
            break
        except DamagedError as error:
            say(f"{error.what}; renamed to {set_aside(target).name}")
            damaged.append(target)
    if damaged:
        step = step_of(saved.path) if saved else 0
        where = saved.path.name if saved else "the beginning"
        say(f"continuing from {where}: {counted(step_of(damaged[0]) - step, 'step')} will be trained again")
    return saved
