"""One run as its directory tells it. Only files are read: no model is built."""

import json
import math
import os
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from minigpt.config import RunConfig, load_config
from minigpt.errors import RunError, nearest
from minigpt.jsonl import read_lines

State = Literal["finished", "interrupted", "running"]


@dataclass(frozen=True)
class RunRecord:
    """A run directory. Figures that the run has not logged are None."""

    path: Path
    name: str
    config: RunConfig

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """metrics.jsonl."""
        return read_lines(self.path / "metrics.jsonl")

    @cached_property
    def receipt(self) -> dict[str, Any]:
        """receipt.json; {} without one, as in a run that began before its first checkpoint."""
        return _read_json(self.path / "receipt.json")

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return sorted(manifest.parent for manifest in self.path.glob("checkpoints/step-*/manifest.json"))

    @property
    def state(self) -> State:
        """Whether a process trains it now, else whether it came to its end."""
        if _is_held(self.path / ".lock"):
            return "running"
        last = _read_json(self.checkpoints[-1] / "state.json") if self.checkpoints else {}
        return "finished" if last.get("train", {}).get("finished") else "interrupted"

    @cached_property
    def best(self) -> dict[str, Any]:
        """The line of the lowest validation loss; {} before the first evaluation."""
        found = [line for line in self.lines if math.isfinite(line.get("val_loss", math.nan))]
        return min(found, key=lambda line: line["val_loss"], default={})

    @property
    def parameters(self) -> int | None:
        """Numbers in the newest checkpoint's weights: of an adapter, its own."""
        for part in ("model", "adapter"):
            for folder in self.checkpoints[-1:]:
                if (folder / f"{part}.safetensors").is_file():
                    return _numbers(folder / f"{part}.safetensors")
        return None

    @property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json."""
        return _read_json(self.path / "tokenizer.json")

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
    if not (path / "config.yaml").is_file():
        near = [folder.name for folder in _directories(path.parent)]
        hint = nearest(path.name, near) if near else "minigpt runs list shows those that are there"
        raise RunError(f"no such run: {path}; {hint}")
    return RunRecord(path, name or path.name, load_config(path / "config.yaml"))


def find_runs(folder: str | Path, pattern: str = "*") -> list[RunRecord]:
    """The runs in a folder of runs and in its sweeps (SWEEP/NAME), whose name the pattern matches, by name.

    Raises:
        RunError: no such folder.
        ConfigError: a config.yaml that this version cannot read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RunError(f"no such folder: {folder}; name the folder of the runs with --runs-dir")
    found = {path: path.relative_to(folder).as_posix() for path in _directories(folder)}
    wanted = [path for path, name in found.items() if Path(name).match(pattern) or path.parent.match(pattern)]
    return [read_run(path, found[path]) for path in sorted(wanted)]


def _directories(folder: Path) -> list[Path]:
    """Run directories in a folder, and in those folders of it that are no run themselves."""
    found = []
    for path in sorted(folder.glob("*/")):
        if (path / "config.yaml").is_file():
            found.append(path)
        else:
            found += [file.parent for file in sorted(path.glob("*/config.yaml"))]
    return found


def _read_json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _numbers(path: Path) -> int:
    """Counted in the header of a safetensors file: 8 bytes of length, then JSON of shapes."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")


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
