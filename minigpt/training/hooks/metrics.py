"""Write metrics.jsonl while a run trains."""

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from minigpt.files import append_line, keep_lines
from minigpt.runtime.device import peak_flops
from minigpt.training.loop import Hook, Trainer
from minigpt.training.schedule import context_parts


class Metrics(Hook):
    """metrics.jsonl: a line at the start, every `every` steps and at every evaluation.

    Keys: step, epoch, tokens, seconds, loss (mean since the last line), lr, grad_norm, tokens_per_second, mfu; at
    evaluations also val_loss and bits_per_byte. The line of step 0 has only step, epoch, tokens, seconds and the keys
    of an evaluation. Loss and grad_norm count only steps where both were finite; without such a step since the last
    line, both are left out. `skipped` counts the other steps, which changed no weight. Checkpoints also save the steps
    since the last line, so a resumed run writes the same lines as an uninterrupted one.

    Args:
        path: the file.
        every: steps between lines.
        flops_per_token: number of parts that a window is split into (see `context_parts`) -> a step's operations per
            token; used for MFU, the share of this device's measured matrix-product speed.
        val_bytes_per_token: source bytes per validation token, for bits_per_byte; None if the loss is not per token.
        listeners: called with every line as a dict.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        flops_per_token: Callable[[int], float],
        val_bytes_per_token: float | None,
        listeners: tuple[Callable[[Trainer, dict[str, Any]], None], ...] = (),
    ):
        self.path, self.every, self.flops = path, every, flops_per_token
        self.bytes_per_token, self.listeners = val_bytes_per_token, listeners
        self.clock = self.eval_seconds = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Drop the lines that a killed run wrote after its checkpoint, then start the clock."""
        keep_lines(self.path, trainer.state.step or -1)
        self.peak = self._ceiling(trainer)
        self._restart(trainer)

    def on_first_loss(self, trainer: Trainer, loss: float) -> None:
        """Write the line of step 0."""
        state = trainer.state
        line = {"step": 0, "epoch": 0.0, "tokens": 0, "seconds": round(state.seconds, 3), **self._evaluated(loss)}
        self._write(trainer, line)

    def on_rollback(self, trainer: Trainer) -> None:
        """Drop the lines after the step that the run rolled back to, and start the clock again."""
        keep_lines(self.path, trainer.state.step)
        self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self.clock, self.first_step = time.perf_counter(), trainer.state.step
        self.eval_seconds = trainer.eval_seconds

    def on_step(self, trainer: Trainer) -> None:
        """Note the loss; write a line when one is due."""
        state = trainer.state
        state.unlogged.append([trainer.loss.item(), trainer.grad_norm.item()])
        evaluated = state.eval_step == state.step
        if state.step % self.every and not evaluated:
            return
        steps = torch.tensor(state.unlogged, dtype=torch.float64)
        state.unlogged = []
        finite = steps[steps.isfinite().all(1)]
        trainer.runtime.synchronise()
        spent = time.perf_counter() - self.clock - (trainer.eval_seconds - self.eval_seconds)
        speed = (state.step - self.first_step) * trainer.batches.tokens_per_step / max(spent, 1e-9)
        rate = speed * self.flops(context_parts(trainer.progress, trainer.schedule))
        if rate > self.peak:  # other programs ran while the ceiling was measured, so measure it again
            peak_flops.cache_clear()
            self.peak = max(rate, self._ceiling(trainer))
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": round(trainer.epoch, 4),
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            **({"loss": finite[:, 0].mean().item(), "grad_norm": finite[-1, 1].item()} if len(finite) else {}),
            "lr": trainer.lr,
            "tokens_per_second": round(speed, 1),
            "mfu": round(rate / self.peak, 4),
        }
        if evaluated and state.val_loss is not None:
            line |= self._evaluated(state.val_loss)
        if len(finite) < len(steps):
            line["skipped"] = len(steps) - len(finite)
        self._write(trainer, line)

    def _ceiling(self, trainer: Trainer) -> float:
        """FLOP/s of a large matrix product on all ranks together."""
        runtime = trainer.runtime
        return peak_flops(str(runtime.device), runtime.precision) * runtime.ranks.world

    def _evaluated(self, loss: float) -> dict[str, float]:
        """The keys of an evaluation in a line."""
        if self.bytes_per_token is None:
            return {"val_loss": loss}
        return {"val_loss": loss, "bits_per_byte": loss / math.log(2) / self.bytes_per_token}

    def _write(self, trainer: Trainer, line: dict[str, Any]) -> None:
        append_line(self.path, line)
        for listener in self.listeners:
            listener(trainer, line)
        self._restart(trainer)
