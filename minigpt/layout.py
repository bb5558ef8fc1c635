"""Define the names of all files in a run directory. No other module contains these names.

    runs/NAME/
        config.yaml, receipt.json, tokenizer.json, template.json (only if the run was tuned on chats)
        metrics.jsonl, metrics.csv, samples.jsonl, incidents.jsonl, eval.json, temperature.json, plots/loss.png
        note.json (a note that a person wrote about the run in the browser)
        checkpoints/step-00000500/, checkpoints/best, checkpoints/last (text files that name a step)
        checkpoints/step-00000500.needed (another run was fine-tuned from this step, so it is never deleted)
        checkpoints/needed-step-00000500/ (that step, if the run saved it again with other weights)
        adapters/NAME/, .lock

`weights.checkpoint` describes the files inside a checkpoint.
"""

import difflib
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from minigpt.errors import RunError
from minigpt.files import find, is_unfinished

BEST, LAST = "best", "last"
POINTERS = (BEST, LAST)
NEEDED = ".needed"
"""Files next to the checkpoints that name one of them. The first that exists is the one to use."""
STATE, MANIFEST = "state.json", "manifest.json"
"""Files of a checkpoint. The manifest is written last, so a directory without it is incomplete."""
CONFIG, RECEIPT, TOKENIZER, TEMPLATE = "config.yaml", "receipt.json", "tokenizer.json", "template.json"
METRICS, METRICS_CSV, SAMPLES, INCIDENTS = "metrics.jsonl", "metrics.csv", "samples.jsonl", "incidents.jsonl"
EVALUATION, TEMPERATURE, NOTE = "eval.json", "temperature.json", "note.json"
CHECKPOINTS, ADAPTERS, PLOTS, LOCK = "checkpoints", "adapters", "plots", ".lock"


@dataclass(frozen=True)
class RunFolder:
    """The paths of one run directory; the files may or may not exist."""

    path: Path

    @classmethod
    def of(cls, path: str | Path, holding: str = CONFIG) -> Self:
        """Find the run of a path, which may be the run directory, one of its checkpoints, or its best/last file.

        The run directory must have the file `holding`. If there is none, the path itself is taken; so is another
        program's model, although a run or any folder with a config.yaml may hold it.
        """
        path = Path(path)
        if (path / "config.json").is_file():
            return cls(path)
        folders = (path, *path.absolute().parents[:2])
        return cls(next((folder for folder in folders if (folder / holding).is_file()), path))

    @property
    def is_run(self) -> bool:
        """Whether this is a run: it has config.yaml. Raises OSError if the system cannot look."""
        found = find(self.config)
        return found is not None and stat.S_ISREG(found.st_mode)

    @property
    def config(self) -> Path:
        """The resolved settings."""
        return self.path / CONFIG

    @property
    def receipt(self) -> Path:
        """The command, versions, hardware, seed, and sha256 of the data."""
        return self.path / RECEIPT

    @property
    def tokenizer(self) -> Path:
        """The tokenizer, in Hugging Face's format."""
        return self.path / TOKENIZER

    @property
    def template(self) -> Path:
        """The format of chats; only in a run that was tuned on chats."""
        return self.path / TEMPLATE

    @property
    def metrics(self) -> Path:
        """The metrics, one object per line: step, loss, ..."""
        return self.path / METRICS

    @property
    def metrics_csv(self) -> Path:
        """The metrics as a table, written on request."""
        return self.path / METRICS_CSV

    @property
    def samples(self) -> Path:
        """Texts that the model generated during training."""
        return self.path / SAMPLES

    @property
    def incidents(self) -> Path:
        """What went wrong and what was done about it; missing if nothing went wrong."""
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
        """The note that a person wrote about the run, and whether it has a star."""
        return self.path / NOTE

    @property
    def lock(self) -> Path:
        """The lock, held by the process that trains the run."""
        return self.path / LOCK

    @property
    def checkpoints(self) -> Path:
        """The directory of all checkpoints."""
        return self.path / CHECKPOINTS

    @property
    def last(self) -> Path:
        """The file that names the newest checkpoint."""
        return self.checkpoints / LAST

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / step_name(step)

    def plot(self, name: str) -> Path:
        """A picture or page of the run: plot("loss.png")."""
        return self.path / PLOTS / name

    def adapter(self, name: str) -> Path:
        """The adapter with this name, in the run of its base model."""
        return self.path / ADAPTERS / name

    def steps(self) -> list[Path]:
        """The complete checkpoints, oldest first."""
        return whole_steps(self.checkpoints)

    def in_use(self) -> bool:
        """Whether the directory has files of a run, other than the lock and unfinished files of a killed process."""
        names = [entry.name for entry in self.path.iterdir()] if self.path.exists() else []
        return any(name != LOCK and not is_unfinished(name) for name in names)


def whole_steps(checkpoints: Path) -> list[Path]:
    """The complete checkpoints in a directory, oldest first. Copies under other names do not count."""
    found = (path for path in checkpoints.glob("step-*") if is_step(path.name) and (path / MANIFEST).is_file())
    return sorted(found, key=step_of)


def check_name(name: str) -> str:
    """Check that a folder below runs/ can have this name, such as "my" or "try/2", and return it. Raises RunError."""
    path = Path(name)
    if not path.parts or path.anchor or ".." in path.parts or not name.isprintable() or len(name.encode()) > 200:
        raise RunError(f"a run cannot be named {name!r}; use letters, digits, - and _, for example --name my-run")
    return name


def step_name(step: int) -> str:
    """step_name(500) -> "step-00000500"."""
    return f"step-{step:08d}"


def is_step(name: str) -> bool:
    """Whether this is a name that `step_name` makes."""
    return re.fullmatch(r"step-([0-9]{8}|[1-9][0-9]{8,})", name) is not None


def step_of(checkpoint: Path) -> int:
    """step-00000500 -> 500, also for damaged-step-00000500-1 and copies; 0 if the name has no step."""
    found = re.search(r"step-([0-9]+)", checkpoint.name)
    return int(found[1]) if found else 0


def is_pointer(path: Path) -> bool:
    """Whether a path means a run's best or last checkpoint: runs/my/checkpoints/best. A run may be called runs/best."""
    return path.name in POINTERS and not path.is_dir()


def no_such_run(path: Path) -> RunError:
    """The error for a run that does not exist. It names a similar run next to it or in runs/, or says there is none."""
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
