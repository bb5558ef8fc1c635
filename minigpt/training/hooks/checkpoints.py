"""Save checkpoints while a run trains, and delete old ones."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from minigpt.errors import DivergedError, storage_error
from minigpt.files import delete_file, json_object, sync
from minigpt.layout import BEST, LAST, POINTERS, RunFolder, step_name, step_of, whole_steps
from minigpt.training.loop import Hook, Trainer
from minigpt.weights import checkpoint
from minigpt.weights.aside import is_needed
from minigpt.weights.checkpoint import Checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, RecoveryState


class Checkpoints(Hook):
    """Saves every `every` steps, at a new best loss and at the end; updates `best` and `last`; keeps the last `keep`.

    `extra` holds the fields of `CheckpointState` that stay the same for the whole run.

    Only the checkpoints of every `every` steps count for `keep`. An interruption saves one more, which does not count,
    so an interrupted run keeps the same checkpoints, and rolls back to the same ones, as an uninterrupted run.
    """

    def __init__(self, folder: Path, every: int, keep: int, extra: dict[str, Any]):
        self.folder, self.every, self.keep, self.extra = folder, every, keep, extra
        self.recovery: RecoveryState | None = None  # set by the guard, if there is one
        self.had_finished = False

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Note whether the run had finished, and is now continued."""
        self.had_finished = checkpoint.train.finished

    def on_start(self, trainer: Trainer) -> None:
        """Do what is left to do if the run was killed after writing a checkpoint.

        A finished run is saved as unfinished: if it is killed before its next checkpoint, it still has steps to do.
        """
        self.on_rollback(trainer)
        target = self.directory(trainer.state.step)
        if self.had_finished:
            self.save(trainer)
        elif trainer.runtime.ranks.rank == 0 and target.exists():
            self.sealed(target, best=False)

    def on_rollback(self, trainer: Trainer) -> None:
        """Point `best` to the best step of the state; delete it, and scores, if they are about a later checkpoint."""
        state, run = trainer.state, RunFolder(self.folder.parent)
        if trainer.runtime.ranks.rank:
            return
        best = self.directory(state.best_step)
        if state.best_step and best.exists():
            checkpoint.point(self.folder, BEST, best)
        else:  # it names a deleted step, and the run may save another checkpoint of that step
            delete_file(self.folder / BEST)
        for file in (run.evaluation, run.temperature):
            step = json_object(file).get("step")
            if isinstance(step, int) and step > state.step:
                delete_file(file)

    def on_step(self, trainer: Trainer) -> None:
        """Save when due, or when this step's evaluation was the best so far."""
        state = trainer.state
        best = state.eval_step == state.best_step == state.step
        if best or state.step % self.every == 0:
            self.save(trainer, best)

    def on_end(self, trainer: Trainer) -> None:
        """Save the last step, marked finished or not."""
        if trainer.state.step:
            self.save(trainer)

    def state(self, trainer: Trainer) -> CheckpointState:
        """Everything in a checkpoint except the tensors."""
        return replace(trainer.checkpoint_state(), recovery=copy.deepcopy(self.recovery), **self.extra)

    def directory(self, step: int) -> Path:
        """checkpoints/step-00000500."""
        return self.folder / step_name(step)

    def save(self, trainer: Trainer, best: bool = False) -> None:
        """Write a checkpoint, update `last` (and `best`), delete old checkpoints.

        The parts of a sharded model are gathered one tensor at a time: all of them together would not fit into the
        memory of a device. The first rank keeps them in the host's memory.

        Raises DivergedError instead of saving if a tensor is NaN or infinite.
        """
        ranks, parts = trainer.runtime.ranks, trainer.tensors()
        check_finite({f"{part} {name}": own for part, named in parts.items() for name, own in named.items()}, trainer)
        tensors: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
        for part, named in parts.items():
            for name, own in named.items():
                whole = ranks.whole(own)
                if ranks.rank == 0:
                    tensors[part][name] = own if whole is own else whole.cpu()
        if ranks.rank == 0:
            target = self.directory(trainer.state.step)
            self.sync_lines()
            checkpoint.save(target, tensors, self.state(trainer))
            self.sealed(target, best)

    def finish(self, trainer: Trainer) -> None:
        """Wait until the checkpoint that is being written is whole: here `save` has waited."""

    def sync_lines(self) -> None:
        """Bring all lines so far to the disk before their checkpoint: a run that resumes from it has lost the others.

        Raises StorageError.
        """
        run = RunFolder(self.folder.parent)
        try:
            for file in (run.metrics, run.samples, run.incidents):
                if file.exists():
                    sync(file)
        except OSError as error:
            raise storage_error(run.path, error) from None

    def sealed(self, target: Path, best: bool) -> None:
        """Point `last` to this checkpoint, and `best` too if `best` is true; delete old checkpoints."""
        checkpoint.point(self.folder, LAST, target)
        if best:
            checkpoint.point(self.folder, BEST, target)
        prune(self.folder, self.keep, self.every)


def check_finite(tensors: Mapping[str, Tensor], trainer: Trainer) -> None:
    """Raises DivergedError that names a NaN or infinite tensor; if one rank has one, all ranks raise.

    Of a sharded tensor, each rank checks its own part.
    """
    own = {name: getattr(tensor, "_local_tensor", tensor) for name, tensor in tensors.items()}
    broken = next((name for name, tensor in own.items() if not tensor.isfinite().all()), "")
    if trainer.runtime.ranks.largest(float(bool(broken))):
        raise DivergedError(
            f"{broken or 'a part on another rank'} is NaN or infinite after step {trainer.state.step}; not saved"
        )


def prune(folder: Path, keep: int, every: int = 1) -> None:
    """Delete all checkpoints except `best`, `last` and the newest `keep` whose step is a multiple of `every`.

    Those that another run needs stay too. Raises StorageError.
    """
    named = {pointed(folder, name) for name in POINTERS}
    kept = [path for path in whole_steps(folder) if step_of(path) % every == 0][-keep:]
    for old in whole_steps(folder):
        if old not in kept and old.name not in named and not is_needed(old):
            checkpoint.delete(old)


def pointed(folder: Path, name: str) -> str:
    """The name of the checkpoint that `best` or `last` names; "" if there is no such file."""
    return (folder / name).read_text("utf-8", "replace").strip() if (folder / name).is_file() else ""
