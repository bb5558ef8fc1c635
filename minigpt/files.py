"""Write text, JSON lines and whole folders so that a kill leaves the old one or the new one; read what a person names.

Work that is not finished has a name of its own, .NAME.HOST-PID-RANDOM.tmp: no two processes share one, and the next
write in that folder deletes what a dead process left.

A JSON lines file holds one object per line. In those of a run each object has a `step`.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from minigpt.errors import RunError, StorageError, UserError, storage_error


def expand_home(text: str) -> str:
    """A path that a person wrote, with ~ as the home folder; every setting and argument that is a path comes by here.

    "~/runs" -> "/home/ada/runs"; "runs/~" stays. A file that is really called ~name comes back as an absolute path.

    Raises:
        UserError: ~name is neither a file nor a user's home.
    """
    if "\0" in text:
        raise UserError(f"{text!r}: no path holds a NUL character")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        if os.path.lexists(text):
            return str(Path(text).absolute())
        name = text[1:].partition("/")[0]
        problem = f"this computer has no user {name!r}" if name else "your home folder is not known"
        raise UserError(f"{text}: {problem}; write the path in full") from None


MOST = 1 << 28
"""Bytes of a file that is read whole."""
WAIT = 5.0
"""Seconds that a named pipe may be without a writer."""


def find(path: str | Path) -> os.stat_result | None:
    """What the system says of a path; None: nothing is there. Raises OSError where it refuses to look."""
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:  # a zero byte, or half a surrogate pair
        raise OSError(errno.EINVAL, str(error)) from None


def read_text(path: str | Path, most: int = MOST) -> str:
    """A whole file of UTF-8, without a byte-order mark, line ends as \\n.

    Raises:
        OSError: not to be had; longer than `most` bytes; or a named pipe that nobody writes to.
        UnicodeDecodeError: not UTF-8.
    """
    found = find(path)
    if found and stat.S_ISFIFO(found.st_mode):
        content = _read_pipe(path, most + 1)
    else:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    return _decoded(content, most)


def read_piped(most: int = MOST) -> str:
    """Standard input, as `read_text` gives a file. Raises alike."""
    return _decoded(sys.stdin.buffer.read(most + 1) if sys.stdin else b"", most)


def _decoded(content: bytes, most: int) -> str:
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most >> 20} MB")
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()


def _read_pipe(path: str | Path, most: int) -> bytes:
    """What is written to a named pipe; opened in the common way, it would wait for a writer for ever."""
    handle, end = os.open(path, os.O_RDONLY | os.O_NONBLOCK), time.monotonic() + WAIT
    with os.fdopen(handle, "rb", buffering=0) as file:
        while (first := file.read(1)) == b"":  # None: there is a writer, who has written nothing yet
            if time.monotonic() > end:
                raise OSError(errno.EAGAIN, f"nobody wrote to this pipe for {WAIT:g} seconds")
            time.sleep(0.01)
        os.set_blocking(handle, True)
        with io.BufferedReader(file) as rest:
            return (first or b"") + rest.read(most - len(first or b""))


def beside(path: Path) -> Path:
    """A new name in the same folder for work on `path`; what dead processes left in that folder is deleted."""
    sweep(path.parent)
    name = path.name[:40]  # the whole could be too long for the system
    return path.with_name(f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def sweep(folder: Path) -> None:
    """Delete the unfinished work of processes of this machine that have ended."""
    for left in folder.glob(".*.tmp"):
        owner = re.search(r"\.([^.]+)-(\d+)-[0-9a-f]{8}\.tmp$", left.name)
        if owner and owner[1] == _host() and not _is_alive(int(owner[2])):
            with contextlib.suppress(OSError):  # another process is deleting it too, or may and we may not
                delete_path(left)


def delete_path(path: Path) -> None:
    """Delete a file, a link or a whole folder. Raises OSError."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _host() -> str:
    """This machine's name, without the dots that separate the parts of a temporary name."""
    return socket.gethostname().replace(".", "_")


def _is_alive(pid: int) -> bool:
    """Whether a process of this machine has that number; where one cannot ask (Windows), it is taken to be alive."""
    if os.name != "posix":  # elsewhere os.kill(pid, 0) does not ask, it kills
        return True
    try:
        os.kill(pid, 0)
        return True
    except PermissionError:  # another person's
        return True
    except (ProcessLookupError, OverflowError):
        return False


def delete_folder(folder: Path) -> None:
    """Delete a folder so that a kill leaves the whole of it, or what `sweep` deletes. Raises OSError."""
    work = beside(folder)
    folder.rename(work)
    delete_path(work)


def only_ours(path: Path) -> bool:
    """Whether it is this user's and nobody else may write it; on Windows it is taken to be so. Raises OSError."""
    found = path.stat()
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def private_folder(folder: Path) -> None:
    """Make a folder for compiled code, which only this user may write; one where others could is deleted first.

    Raises OSError: it is another user's, or it cannot be made.
    """
    if folder.exists() and not only_ours(folder):
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is another user's")
        delete_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a kill leaves the old one or the new one. Raises OSError, and then leaves the old one."""
    work = beside(path)
    try:
        with work.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        work.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):  # only the first error is reported
            work.unlink()
        raise


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
    if aside.exists():
        with contextlib.suppress(OSError):  # the new one is in place
            delete_folder(aside)
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
    work = beside(out)
    try:
        work.mkdir(parents=True)
        yield work
        work.rename(out)
    except (OSError, SafetensorError) as error:  # the second is what a full disk makes of weights
        why = getattr(error, "strerror", None) or error
        raise StorageError(f"{out} cannot be written ({why}); choose another with --out") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A file to write, which gets the name `out` once the block has ended well; else nothing is left of it.

    Raises StorageError: it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = beside(out)
        try:
            yield work
            work.rename(out)
        finally:
            if work.exists():  # a folder that cannot be written to cannot be cleaned either
                work.unlink()
    except OSError as error:
        raise storage_error(out, error, "choose another with --out") from None


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
    write_lines(path, [line for line in read_lines(path, _of_a_step) if line["step"] <= last_step])


def _of_a_step(line: Any) -> dict[str, Any]:
    """The line of a run. Raises ValueError for another form."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int | float):
        raise ValueError('no number "step"')
    return line


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write all objects again, whole or not at all. Raises StorageError."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path, check: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """All objects, as `check` makes them, which raises ValueError for one that is none. A last line without its line
    end that cannot be read is still being written, or a kill cut it short: it is left out.

    Raises:
        RunError: the file cannot be read; another damaged line, by its number.
    """
    if not path.exists():
        return []
    try:
        lines = path.read_bytes().split(b"\n")  # not splitlines: a text may hold U+2028
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); fix its permissions, or delete it") from None
    found = []
    for number, line in enumerate(lines, 1):
        try:
            found += [check(parse_json(line))] if line.strip() else []
        except (ValueError, OverflowError) as error:  # UnicodeDecodeError is one
            if number < len(lines):
                raise RunError(f"{path}, line {number}: damaged ({error}); correct or delete that line") from None
    return found
