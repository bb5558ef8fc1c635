"""Hooks: metrics.jsonl and checkpoints. Those that face a person are in `assemble/hooks.py`."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minigpt import checkpoint
from minigpt.errors import MiniGPTError
from minigpt.jsonl import append_line, keep_lines
from minigpt.runtime import peak_flops
from minigpt.training.loop import Hook, Trainer


class Metrics(Hook):
    """metrics.jsonl: a line every `every` steps and at every evaluation.

    Keys: step, epoch, tokens, seconds, loss (mean since the last line), lr, grad_norm, tokens_per_second, mfu; at
    evaluations val_loss and bits_per_byte too.

    Args:
        path: the file.
        every: steps.
        flops_per_token: of the model, for MFU, the share of this device's measured matrix-product speed.
        val_bytes_per_token: source bytes of one validation token, for bits_per_byte.
        listeners: called with every line as a dict.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        flops_per_token: int,
        val_bytes_per_token: float,
        listeners: tuple[Callable[[Trainer, dict[str, Any]], None], ...] = (),
    ):
        self.path, self.every, self.flops = path, every, flops_per_token
        self.bytes_per_token, self.listeners = val_bytes_per_token, listeners
        self.losses: list[torch.Tensor] = []
        self.clock = self.eval_seconds = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Drop what a killed run wrote past its checkpoint, then start the clock."""
        keep_lines(self.path, trainer.state.step)
        self.peak = peak_flops(trainer.runtime.device.type, trainer.runtime.precision)
        self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self.losses, self.clock, self.first_step = [], time.perf_counter(), trainer.state.step
        self.eval_seconds = trainer.eval_seconds

    def on_step(self, trainer: Trainer) -> None:
        """Note the loss; write a line when one is due."""
        state = trainer.state
        self.losses.append(trainer.loss)
        evaluated = state.eval_step == state.step
        if state.step % self.every and not evaluated:
            return
        loss = torch.stack(self.losses).mean().item()
        if not math.isfinite(loss):
            raise MiniGPTError(
                f"the loss is {loss} at step {state.step}; lower optimizer.learning_rate, or resume from a checkpoint"
            )
        trainer.runtime.synchronise()
        spent = time.perf_counter() - self.clock - (trainer.eval_seconds - self.eval_seconds)
        speed = (state.step - self.first_step) * trainer.batches.tokens_per_step / max(spent, 1e-9)
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": round(trainer.epoch, 4),
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            "loss": loss,
            "lr": trainer.lr,
            "grad_norm": trainer.grad_norm.item(),
            "tokens_per_second": round(speed, 1),
            "mfu": round(speed * self.flops / self.peak, 4),
        }
        if evaluated and state.val_loss is not None:
            line["val_loss"] = state.val_loss
            line["bits_per_byte"] = state.val_loss / math.log(2) / self.bytes_per_token
        append_line(self.path, line)
        for listener in self.listeners:
            listener(trainer, line)
        self._restart(trainer)


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
        """Write a checkpoint, move `last`, delete what is old."""
        target = self.directory(trainer.state.step)
        checkpoint.save(target, trainer.tensors(), trainer.state_dict() | self.extra)
        checkpoint.point(self.folder, "last", target)
        checkpoint.prune(self.folder, self.keep)
