"""Save checkpoints of a sharded model: each rank writes its own part, while training continues."""

from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from minigpt.errors import storage_error
from minigpt.files import temporary_path
from minigpt.training.hooks.checkpoints import Checkpoints, check_finite
from minigpt.training.loop import Trainer
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState


@dataclass
class _Writing:
    """A checkpoint that is being written."""

    future: "Future[Any]"
    work: Path
    target: Path
    state: CheckpointState
    best: bool


class ShardedCheckpoints(Checkpoints):
    """Like `Checkpoints`, but torch's DCP copies the tensors and writes them in a thread.

    A checkpoint is complete when all ranks have written. It is then sealed (it gets its manifest and its final name):
    at the next step, or at the latest before the next checkpoint.
    """

    def __init__(self, folder: Path, every: int, keep: int, extra: dict[str, Any]):
        super().__init__(folder, every, keep, extra)
        self.group = cast(
            dist.ProcessGroup, dist.new_group(backend="gloo")
        )  # a separate group, so that the thread's messages do not mix with the training's
        self.writing: _Writing | None = None

    def on_step(self, trainer: Trainer) -> None:
        """Seal a checkpoint that all ranks have written; save when due."""
        if self.writing and self.writing.future.done():
            self.finish(trainer)
        super().on_step(trainer)

    def on_rollback(self, trainer: Trainer) -> None:
        """Wait for the checkpoint that is being written."""
        self.finish(trainer)
        super().on_rollback(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """Save the last step, and wait until it is written."""
        super().on_end(trainer)
        self.finish(trainer)

    def save(self, trainer: Trainer, best: bool = False) -> None:
        """Begin to write. Raises DivergedError as `Checkpoints`; StorageError if writing the previous one failed."""
        self.finish(trainer)
        ranks, target = trainer.runtime.ranks, self.directory(trainer.state.step)
        named = {f"{part}/{name}": value for part, some in trainer.tensors().items() for name, value in some.items()}
        check_finite(named, trainer)
        work = ranks.broadcast(lambda: _empty(target))
        writer = HuggingFaceStorageWriter(str(work), save_distributed=True)
        future = async_save(cast("dict[str, Any]", named), storage_writer=writer, process_group=self.group)
        self.writing = _Writing(cast("Future[Any]", future), work, target, self.state(trainer), best)

    def finish(self, trainer: Trainer) -> None:
        """Wait for the checkpoint that is being written, and seal it. Raises StorageError."""
        one, self.writing = self.writing, None
        if one is None:
            return
        try:
            one.future.result()
        except Exception as error:  # DCP gathers the ranks' errors into one of its own
            raise storage_error(one.target, error) from error
        if trainer.runtime.ranks.rank == 0:
            self.sync_lines()
            checkpoint.seal(one.work, one.target, one.state)
            self.sealed(one.target, one.best)


def _empty(target: Path) -> Path:
    """A new directory for the parts. Raises StorageError."""
    work = temporary_path(target)
    try:
        work.mkdir(parents=True)
    except OSError as error:
        raise storage_error(target, error) from None
    return work
