"""Join checkpoints that several ranks wrote in parts into ordinary files."""

from pathlib import Path

from minigpt.errors import RunError, StorageError, storage_error
from minigpt.layout import RunFolder, whole_steps
from minigpt.runs.lock import PERMISSIONS, run_lock
from minigpt.weights import checkpoint
from minigpt.weights.damage import PARTS
from minigpt.weights.sharded import in_parts


def consolidate(run: str | Path) -> list[Path]:
    """Write the checkpoints of a run, or the named one, again with whole tensors; returns those that were in parts.

    Raises:
        RunError: nothing is in parts, or another process holds the run.
        CheckpointError: missing; DamagedError: truncated or altered.
        StorageError: the disk is full; the parts are still there.
    """
    path = Path(run)
    folder, own = RunFolder(path).checkpoints, RunFolder.of(path)
    if not own.is_run:
        checkpoint.resolve(path)  # raises for a missing path; the lock would make it
    with run_lock(own.path, movable=False):
        checkpoint.restore(own.checkpoints)  # a killed process may have been about to replace one
        found = whole_steps(folder) if folder.is_dir() else [checkpoint.resolve(path)]
        divided = [step for step in found if in_parts(step)]
        if not divided:
            raise RunError(f"{run}: no checkpoint is in parts; there is nothing to do")
        for step in divided:
            whole = checkpoint.load(step, PARTS)
            try:
                checkpoint.save(step, whole.tensors, whole.state)
            except StorageError as error:
                raise storage_error(step, error, f"{PERMISSIONS}; the parts are still there") from None
    return divided
