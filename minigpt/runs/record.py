"""Read a run from its directory. Only files are read: no model is built."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from sys import intern
from typing import Any, Literal

from safetensors import SafetensorError, safe_open

from minigpt.config import RunConfig, load_config
from minigpt.console import Report
from minigpt.errors import CheckpointError, RunError, UserError
from minigpt.files import GrowingLines, is_unfinished, json_object, read_lines
from minigpt.layout import CONFIG, RunFolder, no_such_run
from minigpt.runs.lock import is_held
from minigpt.runs.receipt import read_receipt
from minigpt.weights.checkpoint_state import CheckpointState, read_state

State = Literal["finished", "interrupted", "running"]


@dataclass(frozen=True)
class RunRecord:
    """A run directory. Figures that the run has not logged are None."""

    path: Path
    name: str
    config: RunConfig
    metrics: GrowingLines = field(repr=False, compare=False)

    @property
    def folder(self) -> RunFolder:
        """The paths of the run's files."""
        return RunFolder(self.path)

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl. Raises RunError for a damaged line."""
        return self.metrics.read()

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of samples.jsonl. Raises RunError for a damaged line."""
        return read_lines(self.folder.samples, _having("step", "prompt", "text"))

    @property
    def incidents(self) -> list[dict[str, Any]]:
        """The lines of incidents.jsonl. Raises RunError for a damaged line."""
        return read_lines(self.folder.incidents, _having("step", "what", "action"))

    @cached_property
    def receipt(self) -> dict[str, Any]:
        """receipt.json; {} if it is missing, as in a run that started before its first checkpoint."""
        try:
            return read_receipt(self.path)
        except RunError:  # treat a damaged file as empty, so that its run is still listed
            return {}

    @cached_property
    def checkpoints(self) -> list[Path]:
        """Whole checkpoints, oldest first."""
        return self.folder.steps()

    @property
    def state(self) -> State:
        """Whether a process trains the run now, else whether it has finished."""
        if is_held(self.folder.lock):
            return "running"
        return "finished" if self.saved and self.saved.train and self.saved.train.finished else "interrupted"

    @cached_property
    def saved(self) -> CheckpointState | None:
        """State of the newest checkpoint; None if it is missing or cannot be read, so that its run is still listed."""
        try:
            return read_state(self.checkpoints[-1]) if self.checkpoints else None
        except (OSError, ValueError, CheckpointError):
            return None

    @property
    def started(self) -> str:
        """When the run was started or last continued (this writes its config): 2026-11-28T14:05:09.123456+00:00."""
        return datetime.fromtimestamp(self.folder.config.stat().st_mtime, UTC).isoformat(timespec="microseconds")

    @cached_property
    def best(self) -> dict[str, Any]:
        """The line with the lowest validation loss after step 0; {} before the first evaluation."""
        found = [line for line in self.lines if line["step"] and math.isfinite(line.get("val_loss", math.nan))]
        return min(found, key=lambda line: line["val_loss"], default={})

    @cached_property
    def parameters(self) -> int | None:
        """Number of weights in the newest checkpoint, whatever their bits; of an adapter only its own; None if
        damaged.
        """
        for part in ("model", "adapter"):
            for folder in self.checkpoints[-1:]:
                if (folder / f"{part}.safetensors").is_file():
                    return _numbers(folder / f"{part}.safetensors")
        return None

    @property
    def tokenizer(self) -> dict[str, Any]:
        """tokenizer.json; {} for a damaged one, so that its run is still listed."""
        return json_object(self.folder.tokenizer)

    def summary(self) -> dict[str, Any]:
        """The keys of `minigpt runs list --json`."""
        last = self.lines[-1] if self.lines else {}
        return {
            "name": self.name,
            "path": str(self.path),
            "started": self.started,
            "state": self.state,
            "data": self.config.data.source,
            "parameters": self.parameters,
            "steps": last.get("step", 0),
            "best_val_loss": self.best.get("val_loss"),
            "bits_per_byte": self.best.get("bits_per_byte"),
            "minutes": round(last.get("seconds", 0.0) / 60, 3),
        }


def read_run(path: str | Path, name: str | None = None, before: RunRecord | None = None) -> RunRecord:
    """The run in a directory. `before`: the same run, read earlier, so that only its new figures are read now.

    Raises RunError, ConfigError.
    """
    path = Path(path)
    folder = RunFolder(path)
    try:
        is_run = folder.is_run
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    if not is_run:
        raise no_such_run(path)
    metrics = before.metrics if before else GrowingLines(folder.metrics, _figures)
    return RunRecord(path, name or path.absolute().name, load_config(folder.config), metrics)


def find_runs(
    folder: str | Path,
    pattern: str = "*",
    say: Callable[[str], object] | None = None,
    report: Report = lambda label, done, total: None,
) -> list[RunRecord]:
    """The runs in a folder of runs and in its sweeps (SWEEP/NAME) whose name matches the pattern, sorted by name.

    `report` is called after each run, since a hundred take about a second. `say` is called with a message for each
    damaged run, which is left out. Without `say`:

    Raises:
        RunError: no such folder; a pattern without a name; a damaged run.
        ConfigError: a config.yaml that this version cannot read.
    """
    folder = Path(folder)
    if not Path(pattern).parts:
        raise RunError(f"{pattern!r} matches no name; leave it out to list all runs")
    if not folder.is_dir():
        raise RunError(f"no such folder: {folder.absolute()}; cd to where you trained, or name it with --runs-dir")
    found = {path: path.relative_to(folder).as_posix() for path in _directories(folder)}
    wanted = [path for path, name in found.items() if _matches(Path(name), pattern)]
    runs = []
    for done, path in enumerate(sorted(wanted), 1):
        run = _read_all(path, found[path]) if say else read_run(path, found[path])
        if say and isinstance(run, RunError):
            say(f"left out: {run}")
        elif isinstance(run, RunRecord):
            runs.append(run)
        report("reading runs", done, len(wanted))
    return runs


def _matches(name: Path, pattern: str) -> bool:
    """Whether the name of a run, or that of its sweep, matches. The folder of all runs has no part in it."""
    return name.match(pattern) or (len(name.parts) > 1 and name.parent.match(pattern))


def readable(paths: Sequence[Path], say: Callable[[str], object]) -> list[Path]:
    """Those run directories that can be read; `say` is called for the others. Raises RunError if none can be read."""
    tried = {path: _read_all(path) for path in paths}
    damaged = [error for error in tried.values() if isinstance(error, RunError)]
    if damaged and len(damaged) == len(tried):
        raise damaged[0]
    for error in damaged:
        say(f"left out: {error}")
    return [path for path, run in tried.items() if not isinstance(run, RunError)]


def _read_all(path: Path, name: str | None = None) -> RunRecord | RunError | None:
    """Read everything that lists and pictures need of a run; None if it has only metrics; or the error."""
    folder, run = RunFolder(path), None
    try:
        if _is_run(path):
            run = read_run(path, name)
            run.summary()
        else:
            read_lines(folder.metrics, _figures)
        if folder.evaluation.is_file():
            from minigpt.explanation.metrics import read_floors  # imported late: few runs have floors

            read_floors(path)
    except (UserError, OSError) as error:
        what = str(error)
        return RunError(what if what.startswith(str(path)) else f"{path}: {what}")
    return run


def run_folders(words: Sequence[str | Path]) -> list[Path]:
    """The named run directories; for a folder that is not a run, such as a sweep, the runs in it."""
    found = []
    for path in map(Path, words):
        is_run = _is_run(path) or RunFolder(path).metrics.is_file()
        found += [path] if is_run else _directories(path) or [path]
    return list(dict.fromkeys(found))


def _directories(folder: Path) -> list[Path]:
    """Run directories in a folder, and in those of its folders that are not runs themselves."""
    found = []
    for path in sorted(folder.glob("*/")):
        if _is_run(path):
            found.append(path)
        else:
            found += [file.parent for file in sorted(path.glob(f"*/{CONFIG}"))]
    return [path for path in found if not is_unfinished(path.name)]


def _is_run(path: Path) -> bool:
    """Whether the path is a run. A directory that may not be read counts as one, so that a message names it."""
    try:
        return RunFolder(path).is_run
    except OSError:
        return True


def _figures(line: Any) -> dict[str, Any]:
    """The numbers of a line of metrics.jsonl. Raises ValueError for another form, OverflowError."""
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    found = {  # all lines share the names of the figures, which halves the memory of many lines
        intern(key): value for key, value in line.items() if isinstance(value, int | float) and abs(float(value)) >= 0
    }
    if "step" not in found:
        raise ValueError('no number "step"')
    return found


def _having(*keys: str) -> Callable[[Any], dict[str, Any]]:
    """A check for `read_lines`: an object with these keys."""

    def check(line: Any) -> dict[str, Any]:
        if not isinstance(line, dict) or not line.keys() >= {*keys}:
            raise ValueError(f"not an object with {', '.join(keys)}")
        return line

    return check


def _numbers(path: Path) -> int | None:
    """Number of weights, counted in the header of a safetensors file; None for a damaged file.

    A byte of a packed matrix holds two 4-bit weights. The scales of packed matrices are not weights.
    """
    try:
        with safe_open(path, "numpy") as file:
            return sum(
                math.prod(file.get_slice(name).get_shape()) * (2 if name.endswith(".weight.int4") else 1)
                for name in file.keys()  # noqa: SIM118  no mapping
                if not name.endswith(".weight.scale")
            )
    except (OSError, SafetensorError):
        return None
