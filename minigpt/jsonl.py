"""A run's folder and its text files, written whole.

metrics.jsonl and samples.jsonl hold one JSON object a line, each with a `step`.
"""

import contextlib
import difflib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minigpt.errors import RunError, StorageError, storage_error


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


def write_text(path: Path, text: str) -> None:
    """Write a file so that a kill leaves the old one or the new one. Raises StorageError."""
    work = path.with_name(f".{path.name}.tmp")
    try:
        with work.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except OSError as error:
        work.unlink(missing_ok=True)
        raise storage_error(path, error) from None


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `out` once the block has ended well; else nothing is left of it.

    Raises StorageError: it cannot be written.
    """
    work = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        work.mkdir(parents=True)
        yield work
        work.rename(out)
    except (OSError, SafetensorError) as error:  # the second is what a full disk makes of weights
        why = getattr(error, "strerror", None) or error
        raise StorageError(f"{out} cannot be written ({why}); choose another with --out") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add one object. Raises StorageError."""
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(value, ensure_ascii=False) + "\n")
    except OSError as error:
        raise storage_error(path, error) from None


def keep_lines(path: Path, last_step: int) -> None:
    """Drop the lines after `last_step`, and a half-written one: a resumed run writes them again."""
    if not path.exists():
        return
    write_lines(path, [line for line in read_lines(path) if line["step"] <= last_step])


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """All objects anew, whole or not at all. Raises StorageError."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path, check: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """All objects, as `check` makes them, which raises ValueError for one that is none. A last line without its line
    end that cannot be read is still being written, or a kill cut it short: it is left out.

    Raises:
        RunError: another damaged line, by its number.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")  # not splitlines: a text may hold U+2028
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [check(json.loads(line))] if line.strip() else []
        except ValueError as error:  # UnicodeDecodeError is one
            if number < len(lines):
                raise RunError(f"{path}, line {number}: damaged ({error}); mend or delete that line") from None
    return found
