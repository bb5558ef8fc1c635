"""The hook that shows a run: a live line in a terminal, plain lines elsewhere."""

import math
import time
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from minigpt.console import counted, leave_terminal
from minigpt.training.loop import Hook, Trainer

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
            try:
                (self.live.console if self.live else self.console).print(text, highlight=False)
            except OSError:
                if not leave_terminal():  # else SIGHUP is on its way
                    raise
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
        self.console.print(f"{how}: {counted(state.step, 'step')} in {timedelta(seconds=round(state.seconds))}")


def describe(line: dict[str, Any], trainer: Trainer, eta: float | None) -> str:
    """step 250/2000  loss 2.013  val 2.104  lr 9.8e-04  31,204 tok/s  mfu 12%  eta 0:00:42."""
    total = trainer.budget.total_steps
    parts = [f"step {line['step']}{f'/{total}' if total else ''}"]
    if line["step"]:
        parts.append(f"loss {line.get('loss', math.nan):.4f}")
    if "val_loss" in line:
        bits = f" ({line['bits_per_byte']:.3f} bits/byte)" if "bits_per_byte" in line else ""
        parts.append(f"val {line['val_loss']:.4f}{bits}")
    if line["step"]:  # the first line is of the start, before any step
        parts += [f"lr {line['lr']:.1e}", f"{line['tokens_per_second']:,.0f} tok/s", f"mfu {line['mfu']:.0%}"]
    if eta is not None:
        parts.append(f"eta {timedelta(seconds=int(eta))}")
    return "  ".join(parts)
