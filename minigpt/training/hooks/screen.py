"""Show the progress of a run: a live line in a terminal, plain lines elsewhere."""

import math
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.text import Text

from minigpt.console import LiveLine, counted, fitted, leave_terminal
from minigpt.training.loop import Hook, Trainer

PLAIN_SECONDS = 10.0
LIVE_SECONDS = 0.2
MOST_SECONDS = 1e9
"""The largest `eta`, 31 years: a budget may be longer than any date that Python has."""
BAR = 24
"""The bar's width in characters if there is room; if less than a third of this is free, there is no bar."""


class Screen(Hook):
    """Live line or plain lines; `show` is a listener of the Metrics hook."""

    def __init__(self, console: Console):
        self.console = console
        self.live = LiveLine(console)
        self.line: dict[str, Any] = {}
        self.printed = self.drawn = 0.0

    def on_start(self, trainer: Trainer) -> None:
        """Open the live line."""
        self.began: tuple[float, float] | None = None  # clock and progress after the first step, which may compile
        self.live.__enter__()
        self.live.show("starting")

    def on_step(self, trainer: Trainer) -> None:
        """Start the clock of `eta`, and move the bar."""
        self.began = self.began or (time.perf_counter(), trainer.progress)
        if self.live and time.perf_counter() - self.drawn > LIVE_SECONDS:
            self._draw(trainer)

    def on_validation_batch(self, trainer: Trainer, number: int) -> None:
        """Show the progress of a long evaluation."""
        if self.live and time.perf_counter() - self.drawn > LIVE_SECONDS:
            self.live.show(f"step {_of(trainer.state.step, trainer.budget.total_steps)}  validation batch {number:,}")
            self.drawn = time.perf_counter()

    def on_rollback(self, trainer: Trainer) -> None:
        """Start the clock of `eta` again."""
        self.began = None

    def show(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Show one line of metrics."""
        self.line |= line
        if self.live:
            self._draw(trainer)
        now = time.perf_counter()
        if "val_loss" in line or (not self.live and now - self.printed > PLAIN_SECONDS):
            text = describe(line, trainer, self._eta(trainer), self.console.width if self.live else None)
            try:
                self.console.print(text, highlight=False)
            except OSError:
                if not leave_terminal():  # else SIGHUP is on its way
                    raise
            self.printed = now

    def _draw(self, trainer: Trainer) -> None:
        """Draw the bar, step, loss, validation loss, speed and time left, as far as there is room."""
        step, line, eta = trainer.state.step, self.line, self._eta(trainer)
        parts = [(0, f"step {_of(step, trainer.budget.total_steps)}")]
        if "loss" in line:
            parts.append((1, f"loss {line['loss']:.4f}"))
        if trainer.state.val_loss is not None:
            parts.append((3, f"val {trainer.state.val_loss:.4f}"))
        if "tokens_per_second" in line:
            parts.append((4, f"{line['tokens_per_second']:,.0f} tok/s"))
        if eta is not None:
            parts.append((2, f"eta {timedelta(seconds=int(eta))}"))
        width = self.console.width - 1  # the last cell is the cursor's
        text = fitted(parts, width)
        room = min(BAR, width - len(text) - 2)
        if room >= BAR // 3:
            done = int(min(trainer.progress, 1.0) * room)
            full, rest = ("#", ".") if self.console.options.ascii_only else ("━", "─")
            self.live.show(Text.assemble((full * done, "green"), (rest * (room - done), "dim"), f"  {text}"))
        else:
            self.live.show(text)
        self.drawn = time.perf_counter()

    def _eta(self, trainer: Trainer) -> float | None:
        clock, progress = self.began or (0.0, 1.0)
        done, left = trainer.progress - progress, max(0.0, 1 - trainer.progress)
        return min(MOST_SECONDS, (time.perf_counter() - clock) * left / done) if done > 0 else None

    def close(self) -> None:
        """Remove the live line."""
        self.live.close()

    def on_end(self, trainer: Trainer) -> None:
        """Print how the run ended."""
        self.close()
        self.console.print(ending(trainer))


def ending(trainer: Trainer) -> str:
    """finished: 2,000 steps in 0:03:21, or: finished after 5 minutes, the time for training: step 812 of 2,000."""
    state, minutes, total = trainer.state, trainer.config.max_minutes, trainer.budget.total_steps
    if state.stop_reason != "budget used up":
        return f"stopped, {state.stop_reason}: step {_of(state.step, total, ' of ')}"
    if minutes and state.seconds >= 60 * minutes and (total is None or state.step < total):
        return f"finished after {spoken(60 * minutes)}, the time for training: step {_of(state.step, total, ' of ')}"
    return f"finished: {counted(state.step, 'step')} in {timedelta(seconds=round(state.seconds))}"


def spoken(seconds: float) -> str:
    """30 seconds, 1 minute, 2.5 minutes, 12 hours."""
    for size, name in ((3600, "hour"), (60, "minute")):
        if seconds >= size:
            return f"{seconds / size:.3g} {name}{'' if seconds == size else 's'}"
    return f"{seconds:.3g} second{'' if seconds == 1 else 's'}"


def _of(step: int, total: int | None, between: str = "/") -> str:
    return f"{step:,}{between}{total:,}" if total else f"{step:,}"


def describe(line: dict[str, Any], trainer: Trainer, eta: float | None, width: int | None = None) -> str:
    """step 250/2,000  loss 2.0134  val 2.1040 (3.036 bits/byte)  lr 9.8e-04  31,204 tok/s  mfu 12%  eta 0:00:42.

    If the line is wider than `width`, the least important parts are left out.
    """
    parts = [(0, f"step {_of(line['step'], trainer.budget.total_steps)}")]
    if line["step"]:
        parts.append((1, f"loss {line.get('loss', math.nan):.4f}"))
    if "val_loss" in line:
        bits = f" ({line['bits_per_byte']:.3f} bits/byte)" if "bits_per_byte" in line else ""
        parts.append((2, f"val {line['val_loss']:.4f}{bits}"))
    if line["step"]:  # the first line is of the start, before any step
        parts += [
            (4, f"lr {line['lr']:.1e}"),
            (3, f"{line['tokens_per_second']:,.0f} tok/s"),
            (6, f"mfu {line['mfu']:.0%}"),
        ]
    if eta is not None:
        parts.append((5, f"eta {timedelta(seconds=int(eta))}"))
    return fitted(parts, width)
