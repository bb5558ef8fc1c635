"""Keep the runs of the server, by name, as they are on disk. A run is read again only after a file of it changed."""

import threading
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import RunError, UserError
from minigpt.layout import RunFolder
from minigpt.runs.record import RunRecord, read_run
from minigpt.serve.models import named
from minigpt.tokenizers.base import valid_unicode

Signature = tuple[int, ...]


@dataclass(frozen=True)
class Damaged:
    """A run that cannot be read, and why."""

    name: str
    why: str


class RunList:
    """The runs.

    Args:
        roots: run directories, or folders of them; runs that are started elsewhere are added.
    """

    def __init__(self, roots: list[Path]):
        self.roots = roots
        self._known: dict[Path, tuple[Signature, RunRecord]] = {}
        self._reading = threading.Lock()  # requests of several tabs ask at once

    def paths(self) -> dict[str, Path]:
        """The directory of each run."""
        found: dict[str, Path] = {}
        for root in self.roots:
            for name, path in named(root).items():
                if RunFolder(path).config.is_file() and valid_unicode(name) == name:  # JSON cannot hold other names
                    found.setdefault(name, path)
        return found

    def all(self) -> list[RunRecord | Damaged]:
        """All runs."""
        paths = self.paths()
        for gone in self._known.keys() - set(paths.values()):
            self._known.pop(gone, None)
        return [self._try(name, path) for name, path in paths.items()]

    def find(self, name: str) -> RunRecord:
        """The run of that name. Raises RunError."""
        paths = self.paths()
        if name not in paths:
            raise RunError(f"there is no run {name!r}; GET /api/runs lists all runs")
        return self._read(name, paths[name])

    def _try(self, name: str, path: Path) -> RunRecord | Damaged:
        try:
            return self._read(name, path)
        except (UserError, OSError) as error:
            return Damaged(name, str(error))

    def _read(self, name: str, path: Path) -> RunRecord:
        with self._reading:
            seen = _signature(RunFolder(path))
            known = self._known.get(path)
            if known is None or known[0] != seen:
                run = read_run(path, name, known[1] if known else None)
                run.summary()  # finds a damaged line here, not later where the figures are used
                known = self._known[path] = (seen, run)
            return known[1]


def _signature(folder: RunFolder) -> Signature:
    """When the files that a record reads were changed."""
    found: list[int] = []
    for file in (folder.config, folder.receipt, folder.metrics, folder.checkpoints, folder.last):
        try:
            stat = file.stat()
            found += [stat.st_mtime_ns, stat.st_size]
        except OSError:
            found += [0, 0]
    return tuple(found)
