"""Write text, JSON lines and whole folders so that a kill leaves the old one or the new one.

A JSON lines file holds one object per line. In those of a run each object has a `step`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minigpt.errors import RunError, StorageError, storage_error


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
