"""The hook that passes the lines of metrics.jsonl on. Nothing is measured here, and a tool that fails ends no run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from minigpt.config import RunConfig
from minigpt.errors import first_line
from minigpt.training.hooks.trackers import Tracker, make_tracker
from minigpt.training.loop import Hook, Trainer


class Tracking(Hook):
    """Gives every line to every tracker; `log` is a listener of the Metrics hook.

    Args:
        config: of the run; its logging.track names the tools.
        folder: the run's directory, whose name is the run's.
        say: prints one line.

    Raises:
        UserError: a tool is not installed.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], object]):
        self.config, self.folder, self.say = config.model_dump(mode="json"), folder, say
        self.trackers = {name: make_tracker(name) for name in config.logging.track}

    def on_start(self, trainer: Trainer) -> None:
        """Begin, or go on with, the tracked run."""
        for name in list(self.trackers):
            where = self._try(name, lambda t: t.start(self.config, self.folder.name, self.folder, trainer.state.step))
            if where:
                self.say(f"{name}: {where}")

    def log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Pass one line on."""
        for name in list(self.trackers):
            self._try(name, lambda tracker: tracker.log(line["step"], line))

    def close(self) -> None:
        """Have each tool write what it still holds."""
        for name in list(self.trackers):
            self._try(name, lambda tracker: tracker.finish())

    def _try(self, name: str, act: Callable[[Tracker], str | None]) -> str | None:
        try:
            return act(self.trackers[name])
        except Exception as error:  # noqa: BLE001  a tool may raise anything, and the run is worth more than its record
            del self.trackers[name]
            self.say(f"{name}: tracks no more ({first_line(error)}); the run goes on, and metrics.jsonl has every line")
            return None
