"""Pass the lines of metrics.jsonl to tracking tools. If a tool fails, the run continues without it."""

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
        config: the run's config; its logging.track names the tools.
        folder: the run's directory; its name is the run's name.
        say: prints one line.

    Raises:
        UserError: a tool is not installed.
    """

    def __init__(self, config: RunConfig, folder: Path, say: Callable[[str], object]):
        self.config, self.folder, self.say = config.model_dump(mode="json"), folder, say
        self.trackers = {name: make_tracker(name) for name in config.logging.track}

    def on_start(self, trainer: Trainer) -> None:
        """Begin or continue the record of each tool."""
        for name in list(self.trackers):
            where = self._try(name, lambda t: t.start(self.config, self.folder.name, self.folder, trainer.state.step))
            if where:
                self.say(f"{name}: {where}")

    def log(self, trainer: Trainer, line: dict[str, Any]) -> None:
        """Pass one line to each tool."""
        for name in list(self.trackers):
            self._try(name, lambda tracker: tracker.log(line["step"], line))

    def close(self) -> None:
        """Let each tool write what it still buffers."""
        for name in list(self.trackers):
            self._try(name, lambda tracker: tracker.finish())

    def _try(self, name: str, act: Callable[[Tracker], str | None]) -> str | None:
        try:
            return act(self.trackers[name])
        except Exception as error:  # noqa: BLE001  a tool may raise anything
            del self.trackers[name]
            self.say(f"{name}: tracking stopped ({first_line(error)}); the run continues; metrics.jsonl has every line")
            return None
