"""The hook that saves checkpoints."""

from pathlib import Path
from typing import Any

from minigpt import checkpoint
from minigpt.errors import DivergedError
from minigpt.training.loop import Hook, Trainer


class Checkpoints(Hook):
    """Saves every `every` steps, at a new best, and at the end; `best` and `last` follow; the newest `keep` stay."""

    def __init__(self, folder: Path, every: int, keep: int, extra: dict[str, Any]):
        self.folder, self.every, self.keep, self.extra = folder, every, keep, extra

    def on_start(self, trainer: Trainer) -> None:
        """Let `best` follow a checkpoint after which a kill came too soon."""
        if (best := self.directory(trainer.state.best_step)).exists():
            checkpoint.point(self.folder, "best", best)

    def on_step(self, trainer: Trainer) -> None:
        """Save when due, or when this step's evaluation was the best so far."""
        state = trainer.state
        best = state.eval_step == state.best_step == state.step
        if best or state.step % self.every == 0:
            self.save(trainer)
        if best:
            checkpoint.point(self.folder, "best", self.directory(state.step))

    def on_end(self, trainer: Trainer) -> None:
        """Save the last step, marked finished or not."""
        if trainer.state.step:
            self.save(trainer)

    def directory(self, step: int) -> Path:
        """checkpoints/step-00000500."""
        return self.folder / f"step-{step:08d}"

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint, move `last`, delete what is old. Raises DivergedError rather than save a broken model."""
        ranks = trainer.runtime.ranks
        tensors = {
            part: {name: ranks.whole(tensor) for name, tensor in named.items()}
            for part, named in trainer.tensors().items()
        }
        for part, named in tensors.items():
            for name, tensor in named.items():
                if not tensor.isfinite().all():
                    raise DivergedError(f"{part} {name} is not finite after step {trainer.state.step}; not saved")
        if ranks.rank:
            return
        target = self.directory(trainer.state.step)
        checkpoint.save(target, tensors, trainer.state_dict() | self.extra)
        checkpoint.point(self.folder, "last", target)
        checkpoint.prune(self.folder, self.keep)
