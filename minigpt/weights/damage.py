"""Find the newest undamaged checkpoint of a run, and rename the damaged ones."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

from minigpt.console import counted
from minigpt.errors import CheckpointError, DamagedError, storage_error
from minigpt.layout import LAST, step_of
from minigpt.weights import checkpoint
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


def set_aside(step: Path) -> Path:
    """Rename a damaged checkpoint so that nothing reads it as a checkpoint. Raises StorageError."""
    names = (f"damaged-{step.name}{f'-{number}' if number else ''}" for number in count())
    target = next(path for path in map(step.with_name, names) if not path.exists())
    try:
        return step.rename(target)
    except OSError as error:
        raise storage_error(step, error) from None
