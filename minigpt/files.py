"""Write text, JSON lines and whole folders so that a kill leaves the old one or the new one.

A JSON lines file holds one object per line. In those of a run each object has a `step`.
"""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minigpt.errors import RunError, StorageError, storage_error


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one. Raises OSError, and then leaves the old one."""
    work = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with work.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    finally:
        work.unlink(missing_ok=True)


def write_text(path: Path, text: str, fix: str | None = None, *, parents: bool = False) -> None:
    """Write a text in UTF-8 as `write_bytes` does; `parents` makes its folder first. Raises StorageError."""
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as error:
        raise storage_error(path, error, fix) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also for one that is nested too deeply to be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Have the operating system put a file or directory on the disk (directories: where it can)."""
    if path.is_dir() and os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(work: Path, folder: Path) -> None:
    """Give a finished folder its name; an older one of that name goes. Raises OSError."""
    aside = folder.with_name(f".{folder.name}-old")
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    work.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
    sync(folder.parent)


def refuse_existing(out: Path) -> None:
    """Raises RunError where there is something under this name."""
    if out.exists():
        raise RunError(f"{out} exists, and nothing is overwritten; choose another with --out")


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
