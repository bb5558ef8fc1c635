"""End a run cleanly on Ctrl-C, SIGTERM or SIGHUP."""

import signal
import threading
from typing import Any

from minigpt.console import ending_signals, leave_terminal
from minigpt.training.loop import Hook, Trainer


class Signals(Hook):
    """On Ctrl-C, SIGTERM or SIGHUP (the terminal was closed, without nohup) the run ends after this step, and is saved.

    A second Ctrl-C ends it at once.
    """

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def on_start(self, trainer: Trainer) -> None:
        """Install the signal handlers (only the main thread can)."""
        if threading.current_thread() is not threading.main_thread():
            return

        def handle(number: int, _frame: object) -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            leave_terminal()
            trainer.stop(f"interrupted by {signal.Signals(number).name}")

        for number in ending_signals():
            self.before[number] = signal.signal(number, handle)

    def close(self) -> None:
        """Restore the earlier handlers."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
