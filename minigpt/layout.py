"""Know what lies where in a run directory. No other module spells these names.

    runs/NAME/
        config.yaml, receipt.json, tokenizer.json, template.json (of a run that was tuned on chats)
        metrics.jsonl, metrics.csv, samples.jsonl, incidents.jsonl, eval.json, temperature.json, plots/loss.png
        note.json (what a person wrote about it in the browser)
        checkpoints/step-00000500/, checkpoints/best, checkpoints/last (text files that name a step)
        adapters/NAME/, .lock

What is in a checkpoint's own directory stands in `weights.checkpoint`.
"""

import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minigpt.errors import RunError

BEST, LAST = "best", "last"
POINTERS = (BEST, LAST)
"""Files beside the checkpoints that name one of them; the first that is there is the one to use."""
STATE, MANIFEST = "state.json", "manifest.json"
"""Of a checkpoint; the second is written last, so a directory without it is not a whole one."""
CONFIG, RECEIPT, TOKENIZER, TEMPLATE = "config.yaml", "receipt.json", "tokenizer.json", "template.json"
METRICS, METRICS_CSV, SAMPLES, INCIDENTS = "metrics.jsonl", "metrics.csv", "samples.jsonl", "incidents.jsonl"
EVALUATION, TEMPERATURE, NOTE = "eval.json", "temperature.json", "note.json"
CHECKPOINTS, ADAPTERS, PLOTS, LOCK = "checkpoints", "adapters", "plots", ".lock"


@dataclass(frozen=True)
class RunFolder:
    """One run directory; whether its files are there is another question."""

    path: Path

    @classmethod
    def of(cls, path: str | Path, holding: str = CONFIG) -> Self:
        """The run that a run directory, a checkpoint of it or its best/last file belongs to, which holds that file.

        The path itself where there is none.
        """
        path = Path(path)
        folders = (path, *path.absolute().parents[:2])
        return cls(next((folder for folder in folders if (folder / holding).is_file()), path))

    @property
    def is_run(self) -> bool:
        """Whether a run is there: it has its settings."""
        return self.config.is_file()

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / CONFIG

    @property
    def receipt(self) -> Path:
        """Command, versions, hardware, seed, sha256 of the data."""
        return self.path / RECEIPT

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in Hugging Face's format."""
        return self.path / TOKENIZER

    @property
    def template(self) -> Path:
        """How chats are written; only of a run that was tuned on chats."""
        return self.path / TEMPLATE

    @property
    def metrics(self) -> Path:
        """An object per line: step, loss, ..."""
        return self.path / METRICS

    @property
    def metrics_csv(self) -> Path:
        """The same as a table, on request."""
        return self.path / METRICS_CSV

    @property
    def samples(self) -> Path:
        """Texts that the model wrote while it trained."""
        return self.path / SAMPLES

    @property
    def incidents(self) -> Path:
        """What went wrong and what was done; not there if nothing did."""
        return self.path / INCIDENTS

    @property
    def evaluation(self) -> Path:
        """The report of `minigpt eval --save`."""
        return self.path / EVALUATION

    @property
    def temperature(self) -> Path:
        """The temperature that `minigpt eval --fit-temperature` found."""
        return self.path / TEMPERATURE

    @property
    def note(self) -> Path:
        """What a person wrote about the run, and whether it has a star."""
        return self.path / NOTE

    @property
    def lock(self) -> Path:
        """Held by the process that trains the run."""
        return self.path / LOCK

    @property
    def checkpoints(self) -> Path:
        """The directory of all checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """Names the newest checkpoint."""
        return self.checkpoints / LAST

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / step_name(step)

    def plot(self, name: str) -> Path:
        """A picture or page of the run: plot("loss.png")."""
        return self.path / PLOTS / name

    def adapter(self, name: str) -> Path:
        """The adapter of that name, beside the base that it is for."""
        return self.path / ADAPTERS / name

    def steps(self) -> list[Path]:
        """The whole checkpoints, oldest first."""
        return whole_steps(self.checkpoints)

    def in_use(self) -> bool:
        """Whether something of a run is in the directory, beside the lock and what a kill left of its first file."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        return any(name != LOCK and not (name.startswith(".") and name.endswith(".tmp")) for name in names)


def whole_steps(checkpoints: Path) -> list[Path]:
    """The whole checkpoints in such a directory, oldest first. A copy under another name is not one of the run's."""
    found = (path for path in checkpoints.glob("step-*") if is_step(path.name) and (path / MANIFEST).is_file())
    return sorted(found, key=step_of)


def check_name(name: str) -> str:
    """The name that a person gives a run, if a folder below runs/ can have it: "my", "try/2". Raises RunError."""
    path = Path(name)
    if not path.parts or path.anchor or ".." in path.parts or not name.isprintable() or len(name.encode()) > 200:
        raise RunError(f"a run cannot be named {name!r}; use letters, digits, - and _, for example --name my-run")
    return name


def step_name(step: int) -> str:
    """step_name(500) -> "step-00000500"."""
    return f"step-{step:08d}"


def is_step(name: str) -> bool:
    """Whether `step_name` gives that name to a step."""
    return re.fullmatch(r"step-([0-9]{8}|[1-9][0-9]{8,})", name) is not None


def step_of(checkpoint: Path) -> int:
    """step-00000500 -> 500, also of damaged-step-00000500-1 and of a copy; 0 where the name has no step."""
    found = re.search(r"step-([0-9]+)", checkpoint.name)
    return int(found[1]) if found else 0


def is_pointer(path: Path) -> bool:
    """Whether a path means a run's best or last checkpoint: runs/my/checkpoints/best."""
    return path.name in POINTERS


def no_such_run(path: Path) -> RunError:
    """The error for a run that is not there: it names the nearest beside it or in runs/, or where none was found."""
    for folder in dict.fromkeys((path.parent, Path("runs"))):
        files = [*folder.glob(f"*/{CONFIG}"), *folder.glob(f"*/*/{CONFIG}")]
        found = {file.parent.name: file.parent for file in sorted(files)}
        if close := difflib.get_close_matches(path.name, found, n=1):
            return RunError(f"no such run: {path}; did you mean {found[close[0]]}?")
        if found:
            names = [run.relative_to(folder).as_posix() for run in found.values()]
            more = ", ..." if len(names) > 9 else ""
            return RunError(f"no such run: {path}; {folder.absolute()} holds {', '.join(names[:9])}{more}")
    where = path.parent.absolute()
    return RunError(f"no such run: {path}; no runs in {where}; cd to where you trained, or give the path")
