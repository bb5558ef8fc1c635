"""Hooks that face a person: metrics, the live line or plain lines, the table at the end, samples, and Ctrl-C."""

import math
import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from minigpt.files import append_line, keep_lines
from minigpt.runtime.device import peak_flops
from minigpt.training.loop import Hook, Trainer
from minigpt.training.schedule import context_parts

PLAIN_SECONDS = 10.0


class Screen(Hook):
    """Live line or plain lines; `show` is a listener of the Metrics hook."""

    def __init__(self, console: Console):
        self.console = console
        self.live: Progress | None = None
        self.printed = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Open the live line."""
        self.began: tuple[float, float] | None = None  # clock and progress after the first step, which may compile
        if self.console.is_terminal:
            columns = (BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn())
            self.live = Progress(*columns, console=self.console, transient=True)
            self.live.start()
            self.task = self.live.add_task("starting", total=1.0)

    def on_step(self, trainer: Trainer) -> None:
        """Start the clock of `eta`."""
        self.began = self.began or (time.perf_counter(), trainer.progress)

    def on_rollback(self, trainer: Trainer) -> None:
        """Start it again."""
        self.began = None

    def show(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Show one line of metrics."""
        text = describe(line, trainer, self._eta(trainer))
        if self.live:
            self.live.update(self.task, completed=min(trainer.progress, 1.0), description=text)
        now = time.perf_counter()
        if "val_loss" in line or (not self.live and now - self.printed > PLAIN_SECONDS):
            (self.live.console if self.live else self.console).print(text, highlight=False)
            self.printed = now

    def _eta(self, trainer: Trainer) -> float | None:
        clock, progress = self.began or (0.0, 1.0)
        done, left = trainer.progress - progress, max(0.0, 1 - trainer.progress)
        return (time.perf_counter() - clock) * left / done if done > 0 else None

    def close(self) -> None:
        """Take the live line away."""
        if self.live:
            self.live.stop()

    def on_end(self, trainer: Trainer) -> None:
        """Say how it ended."""
        self.close()
        state = trainer.state
        whole = state.stop_reason == "budget used up"
        how = "finished" if whole else f"stopped, {state.stop_reason}"
        self.console.print(f"{how}: {state.step:,} steps in {timedelta(seconds=round(state.seconds))}")


def describe(line: dict[str, Any], trainer: Trainer, eta: float | None) -> str:
    """step 250/2000  loss 2.013  val 2.104  lr 9.8e-04  31,204 tok/s  mfu 12%  eta 0:00:42."""
    total = trainer.budget.total_steps
    parts = [f"step {line['step']}{f'/{total}' if total else ''}", f"loss {line.get('loss', math.nan):.4f}"]
    if "val_loss" in line:
        bits = f" ({line['bits_per_byte']:.3f} bits/byte)" if "bits_per_byte" in line else ""
        parts.append(f"val {line['val_loss']:.4f}{bits}")
    parts += [f"lr {line['lr']:.1e}", f"{line['tokens_per_second']:,.0f} tok/s", f"mfu {line['mfu']:.0%}"]
    if eta is not None:
        parts.append(f"eta {timedelta(seconds=int(eta))}")
    return "  ".join(parts)


def epoch_table(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row an epoch (the last may be partial): mean training loss, last validation loss, perplexities, seconds.

    A step that ends an epoch counts for it whole, though it may end some tokens past it.

    Args:
        lines: of metrics.jsonl.
    """
    # a step's share of an epoch: at least what the file's rounding to 1e-4 can tell, at most a whole one
    one_step = min(max(lines[-1]["epoch"] / lines[-1]["step"], 1e-3), 1.0) if lines else 1.0
    rows: dict[int, dict[str, float]] = {}
    weights: dict[int, float] = {}
    before = 0.0
    last_step = 0
    for line in lines:
        epoch = max(1, math.floor(line["epoch"] - one_step + 1e-4) + 1)  # in which its last step began
        row = rows.setdefault(epoch, {"epoch": epoch, "train_loss": 0.0, "seconds": 0.0})
        steps = line["step"] - last_step
        weights[epoch] = weights.get(epoch, 0.0) + steps
        loss = line.get("loss", row["train_loss"])
        row["train_loss"] += (loss - row["train_loss"]) * steps / max(weights[epoch], 1e-9)
        row["epoch"] = round(line["epoch"], 2)
        row["seconds"] += line["seconds"] - before
        if "val_loss" in line:
            row["val_loss"] = line["val_loss"]
        before, last_step = line["seconds"], line["step"]
    for epoch in list(rows)[:-1]:  # all but the last are whole, wherever their last line was written
        rows[epoch]["epoch"] = epoch
    for row in rows.values():
        row["train_perplexity"] = math.exp(min(row["train_loss"], 700))
        if "val_loss" in row:
            row["val_perplexity"] = math.exp(min(row["val_loss"], 700))
    return list(rows.values())


def render_epochs(rows: list[dict[str, float]]) -> Table:
    """The table of `epoch_table` for the screen."""
    table = Table("epoch", "train loss", "train ppl", "val loss", "val ppl", "seconds", box=None)
    for row in rows:
        has_val = "val_loss" in row
        table.add_row(
            f"{row['epoch']:g}",
            f"{row['train_loss']:.4f}",
            f"{row['train_perplexity']:.2f}",
            f"{row['val_loss']:.4f}" if has_val else "-",
            f"{row['val_perplexity']:.2f}" if has_val else "-",
            f"{row['seconds']:.1f}",
        )
    return table


class Signals(Hook):
    """Ctrl-C and SIGTERM end the run after the current step, saved; a second Ctrl-C ends it at once."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        """Take the signals (only the main thread can)."""
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, _frame: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            trainer.stop(f"interrupted by {signal.Signals(number).name}")

        for number in (signal.SIGINT, signal.SIGTERM):
            self.before[number] = signal.signal(number, handle)

    def close(self) -> None:
        """Give them back."""
        for number, handler in self.before.items():
            signal.signal(number, handler)


class Samples(Hook):
    """samples.jsonl: {step, prompt, text} every `every` steps and at the end."""

    def __init__(self, path: Path, every: int, prompt: str, write: Callable[[Trainer], str | None]):
        self.path, self.every, self.prompt, self.write = path, every, prompt, write

    def on_start(self, trainer: Trainer) -> None:
        """Drop samples past the checkpoint."""
        self.on_rollback(trainer)

    def on_rollback(self, trainer: Trainer) -> None:
        """Drop samples past the step that the run was set back to."""
        if trainer.runtime.ranks.rank == 0:
            keep_lines(self.path, trainer.state.step)

    def on_step(self, trainer: Trainer) -> None:
        """Sample when due."""
        if self.every and trainer.state.step % self.every == 0:
            self._sample(trainer)

    def on_end(self, trainer: Trainer) -> None:
        """A last sample."""
        if self.every and trainer.state.finished and trainer.state.step % self.every:
            self._sample(trainer)

    def _sample(self, trainer: Trainer) -> None:
        with trainer.averaged_weights():
            text = self.write(trainer)
        if text is not None:  # a rank other than the first only lends its part of the model
            append_line(self.path, {"step": trainer.state.step, "prompt": self.prompt, "text": text})


class Metrics(Hook):
    """metrics.jsonl: a line every `every` steps and at every evaluation.

    Keys: step, epoch, tokens, seconds, loss (mean since the last line), lr, grad_norm, tokens_per_second, mfu; at
    evaluations val_loss and bits_per_byte too. Loss and grad_norm are of steps where they were finite, and left out if
    there was none since the last line; `skipped` counts the others, which changed no weight.

    Args:
        path: the file.
        every: steps.
        flops_per_token: of the model that reads windows in so many parts; for MFU, the share of this device's measured
            matrix-product speed.
        val_bytes_per_token: source bytes of one validation token, for bits_per_byte; None if the loss is not of tokens.
        listeners: called with every line as a dict.
    """

    def __init__(
        self,
        path: Path,
        every: int,
        flops_per_token: Callable[[int], int],
        val_bytes_per_token: float | None,
        listeners: tuple[Callable[[Trainer, dict[str, Any]], None], ...] = (),
    ):
        self.path, self.every, self.flops = path, every, flops_per_token
        self.bytes_per_token, self.listeners = val_bytes_per_token, listeners
        self.steps: list[torch.Tensor] = []  # [loss, norm] of each since the last line
        self.clock = self.eval_seconds = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Drop what a killed run wrote past its checkpoint, then start the clock."""
        keep_lines(self.path, trainer.state.step)
        runtime = trainer.runtime
        self.peak = peak_flops(str(runtime.device), runtime.precision) * runtime.ranks.world
        self._restart(trainer)

    def on_rollback(self, trainer: Trainer) -> None:
        """Drop the lines past the step that the run was set back to, and start the clock again."""
        keep_lines(self.path, trainer.state.step)
        self._restart(trainer)

    def _restart(self, trainer: Trainer) -> None:
        self.steps, self.clock, self.first_step = [], time.perf_counter(), trainer.state.step
        self.eval_seconds = trainer.eval_seconds

    def on_step(self, trainer: Trainer) -> None:
        """Note the loss; write a line when one is due."""
        state = trainer.state
        self.steps.append(torch.stack([trainer.loss.float(), trainer.grad_norm.to(trainer.loss.device).float()]))
        evaluated = state.eval_step == state.step
        if state.step % self.every and not evaluated:
            return
        steps = torch.stack(self.steps).double().cpu()
        finite = steps[steps.isfinite().all(1)]
        trainer.runtime.synchronise()
        spent = time.perf_counter() - self.clock - (trainer.eval_seconds - self.eval_seconds)
        speed = (state.step - self.first_step) * trainer.batches.tokens_per_step / max(spent, 1e-9)
        parts = context_parts(trainer.progress, trainer.schedule)
        line: dict[str, Any] = {
            "step": state.step,
            "epoch": round(trainer.epoch, 4),
            "tokens": state.tokens,
            "seconds": round(state.seconds, 3),
            **({"loss": finite[:, 0].mean().item(), "grad_norm": finite[-1, 1].item()} if len(finite) else {}),
            "lr": trainer.lr,
            "tokens_per_second": round(speed, 1),
            "mfu": round(speed * self.flops(parts) / self.peak, 4),
        }
        if evaluated and state.val_loss is not None:
            line["val_loss"] = state.val_loss
            if self.bytes_per_token is not None:
                line["bits_per_byte"] = state.val_loss / math.log(2) / self.bytes_per_token
        if len(finite) < len(steps):
            line["skipped"] = len(steps) - len(finite)
        append_line(self.path, line)
        for listener in self.listeners:
            listener(trainer, line)
        self._restart(trainer)
