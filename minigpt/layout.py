"""Find the run directory that a path means."""

import difflib
from pathlib import Path

from minigpt.errors import RunError


def run_folder(path: Path, holding: str = "config.yaml") -> Path:
    """The run that a run directory, a checkpoint of it or its best/last file belongs to; `path` if there is none."""
    return next((folder for folder in (path, *path.absolute().parents[:2]) if (folder / holding).is_file()), path)


def no_such_run(path: Path) -> RunError:
    """The error for a run that is not there: it names the nearest beside it or in runs/, or where none was found."""
    for folder in dict.fromkeys((path.parent, Path("runs"))):
        files = [*folder.glob("*/config.yaml"), *folder.glob("*/*/config.yaml")]
        found = {file.parent.name: file.parent for file in sorted(files)}
        if close := difflib.get_close_matches(path.name, found, n=1):
            return RunError(f"no such run: {path}; did you mean {found[close[0]]}?")
        if found:
            names = [run.relative_to(folder).as_posix() for run in found.values()]
            more = ", ..." if len(names) > 9 else ""
            return RunError(f"no such run: {path}; {folder.absolute()} holds {', '.join(names[:9])}{more}")
    where = path.parent.absolute()
    return RunError(f"no such run: {path}; no runs in {where}; cd to where you trained, or give the path")
