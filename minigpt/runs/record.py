"""One run as its directory tells it. Only files are read: no model is built."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from minigpt.config import RunConfig, load_config
from minigpt.errors import CheckpointError, RunError
from minigpt.files import read_lines
from minigpt.layout import CONFIG, RunFolder, no_such_run
from minigpt.runs.receipt import read_receipt
from minigpt.weights.checkpoint_state import read_state

State = Literal["finished", "interrupted", "running"]


@dataclass(frozen=True)
class RunRecord:
    """A run directory. Figures that the run has not logged are None."""

    path: Path
    name: str
    config: RunConfig

    @property
    def folder(self) -> RunFolder:
        """What lies where in it."""
        return RunFolder(self.path)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return read_lines(self.folder.metrics)

    @cached_property
    def receipt(self) -> dict[str, Any]:
        """receipt.json; {} without one, as in a run that began before its first checkpoint."""
        try:
            return read_receipt(self.path)
        except RunError:  # a damaged one tells nothing, so that its run is listed all the same
            return {}

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return self.folder.steps()

    @property
    def state(self) -> State:
        """Whether a process trains it now, else whether it came to its end."""
        if _is_held(self.folder.lock):
            return "running"
        return "finished" if self.checkpoints and _is_finished(self.checkpoints[-1]) else "interrupted"

    @cached_property
    def best(self) -> dict[str, Any]:
        """The line of the lowest validation loss; {} before the first evaluation."""
        found = [line for line in self.lines if math.isfinite(line.get("val_loss", math.nan))]
        return min(found, key=lambda line: line["val_loss"], default={})

    @property
    def parameters(self) -> int | None:
        """Numbers in the newest checkpoint's weights: of an adapter, its own; None where they are damaged."""
        for part in ("model", "adapter"):
            for folder in self.checkpoints[-1:]:
                if (folder / f"{part}.safetensors").is_file():
                    return _numbers(folder / f"{part}.safetensors")
        return None

    @property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json."""
        return _read_json(self.folder.tokenizer)

    def summary(self) -> dict[str, Any]:
        """The keys of `minigpt runs list --json`."""
        last = self.lines[-1] if self.lines else {}
        return {
            "name": self.name,
            "path": str(self.path),
            "state": self.state,
            "data": self.config.data.source,
            "parameters": self.parameters,
            "steps": last.get("step", 0),
            "best_val_loss": self.best.get("val_loss"),
            "bits_per_byte": self.best.get("bits_per_byte"),
            "minutes": round(last.get("seconds", 0.0) / 60, 3),
        }


def read_run(path: str | Path, name: str | None = None) -> RunRecord:
    """The run in a directory. Raises RunError, ConfigError."""
    path = Path(path)
    folder = RunFolder(path)
    if not folder.is_run:
        raise no_such_run(path)
    return RunRecord(path, name or path.name, load_config(folder.config))


def find_runs(folder: str | Path, pattern: str = "*") -> list[RunRecord]:
    """The runs in a folder of runs and in its sweeps (SWEEP/NAME), whose name the pattern matches, by name.

    Raises:
        RunError: no such folder.
        ConfigError: a config.yaml that this version cannot read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"no such folder: {folder.absolute()}; cd to where you trained, or name it with --runs-dir")
    found = {path: path.relative_to(folder).as_posix() for path in _directories(folder)}
    wanted = [path for path, name in found.items() if Path(name).match(pattern) or path.parent.match(pattern)]
    return [read_run(path, found[path]) for path in sorted(wanted)]


def run_folders(words: Sequence[str | Path]) -> list[Path]:
    """The run directories that are named, and in their place those inside a folder that is no run, such as a sweep."""
    found = []
    for path in map(Path, words):
        is_run = RunFolder(path).is_run or RunFolder(path).metrics.is_file()
        found += [path] if is_run else _directories(path) or [path]
    return list(dict.fromkeys(found))


def _directories(folder: Path) -> list[Path]:
    """Run directories in a folder, and in those folders of it that are no run themselves."""
    found = []
    for path in sorted(folder.glob("*/")):
        if RunFolder(path).is_run:
            found.append(path)
        else:
            found += [file.parent for file in sorted(path.glob(f"*/{CONFIG}"))]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    """A damaged file tells nothing, so that its run is listed all the same."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _is_finished(checkpoint: Path) -> bool:
    """A state that cannot be read tells nothing, so that its run is listed all the same."""
    try:
        train = read_state(checkpoint).train
    except (OSError, ValueError, CheckpointError):
        return False
    return train is not None and train.finished


def _numbers(path: Path) -> int | None:
    """Counted in the header of a safetensors file; None for one that is damaged."""
    try:
        with safe_open(path, "numpy") as file:
            return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118  no mapping
    except (OSError, SafetensorError):
        return None


def _is_held(lock: Path) -> bool:
    """Whether a process holds the run's lock; told on POSIX only, where asking does not disturb for long."""
    if os.name == "nt" or not lock.is_file():
        return False
    import fcntl

    with lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
