"""Write texts, JSON lines and folders so that a killed process leaves either the old or the new one; read files safely.

Unfinished files have the name .NAME.HOST-PID-RANDOM.tmp, which is different for every process. The next write in the
folder deletes those of dead processes.

A JSON lines file has one object per line. In the files of a run each object has a `step`.
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


def expand_home(text: str, fix: str = "write the path in full") -> str:
    """Replace ~ at the beginning of a path by the home folder. All settings and arguments that are paths go through it.

    "~/runs" -> "/home/ada/runs"; "runs/~" stays. A file that is really called ~name is returned as an absolute path.

    Raises:
        UserError: ~name is neither a file nor the home of a user; the message ends with `fix`.
    """
    if "\0" in text:
        raise UserError(f"{text!r}: a path cannot contain a NUL character")
    if not text.startswith("~"):
        return text
    try:
        return str(Path(text).expanduser())
    except RuntimeError:
        if os.path.lexists(text):
            return str(Path(text).absolute())
        name = text[1:].partition("/")[0]
        problem = f"this computer has no user {name!r}" if name else "your home folder is not known"
        raise UserError(f"{text}: {problem}; {fix}") from None


MOST = 1 << 28
"""Most bytes of a file that is read as a whole."""
WAIT = 5.0
"""Seconds to wait for a writer of a named pipe."""
PAUSES = (0.01, 0.03, 0.1, 0.3, 0.6)
"""Seconds between two tries to rename on Windows."""
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Errors of a file system that has no locks."""
NO_LINK = getattr(os, "O_NOFOLLOW", 0)
"""Flag to open a file but not through a link, which a run made by another person could lead to any file."""
_NO_CONTAINER = "pid:[4026531836]"  # Linux gives the same number to the first process numbers of every machine
_INVALID_NAME = 123  # Windows' error for a path that no file can have, such as the glob "books\\*.txt"


def find(path: str | Path) -> os.stat_result | None:
    """The result of stat for a path; None if there is nothing. Raises OSError if the system cannot look."""
    try:
        return Path(path).stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        if getattr(error, "winerror", None) == _INVALID_NAME:
            return None
        raise
    except ValueError as error:  # a NUL character, or half a surrogate pair
        raise OSError(errno.EINVAL, str(error)) from None


def read_text(path: str | Path, most: int = MOST) -> str:
    """Read a whole UTF-8 file, without a byte-order mark, with line ends as \\n.

    Raises:
        OSError: the file cannot be read, is longer than `most` bytes, or is a named pipe without a writer.
        UnicodeDecodeError: the file is not UTF-8.
    """
    found = find(path)
    if found and stat.S_ISFIFO(found.st_mode):
        content = _read_pipe(path, most + 1)
    else:
        with Path(path).open("rb") as file:
            content = file.read(most + 1)
    return _decoded(content, most)


def read_piped(most: int = MOST) -> str:
    """Read standard input in the same way as `read_text` reads a file, with the same errors."""
    return _decoded(sys.stdin.buffer.read(most + 1) if sys.stdin else b"", most)


def _decoded(content: bytes, most: int) -> str:
    if len(content) > most:
        raise OSError(errno.EFBIG, f"it holds more than {most >> 20} MB")
    return io.TextIOWrapper(io.BytesIO(content), "utf-8-sig").read()


def _read_pipe(path: str | Path, most: int) -> bytes:
    """Read from a named pipe. A plain open() would wait forever for a writer."""
    handle, end = os.open(path, os.O_RDONLY | os.O_NONBLOCK), time.monotonic() + WAIT
    with os.fdopen(handle, "rb", buffering=0) as file:
        while (first := file.read(1)) == b"":  # None: there is a writer that has written nothing yet
            if time.monotonic() > end:
                raise OSError(errno.EAGAIN, f"nobody wrote to this pipe for {WAIT:g} seconds")
            time.sleep(0.01)
        os.set_blocking(handle, True)
        with io.BufferedReader(file) as rest:
            return (first or b"") + rest.read(most - len(first or b""))


def temporary_path(path: Path) -> Path:
    """A new name in the same folder for the unfinished `path`. Also deletes what dead processes left in the folder."""
    delete_unfinished(path.parent)
    name = path.name[:40]  # the whole name could be too long for the system
    return path.with_name(f".{name}.{_host()}-{os.getpid()}-{secrets.token_hex(4)}.tmp")


def is_unfinished(name: str) -> bool:
    """Whether this is a name that `temporary_path` makes."""
    return name.startswith(".") and name.endswith(".tmp")


def delete_unfinished(folder: Path) -> None:
    """Delete the unfinished files of processes of this machine that have ended."""
    for left in folder.glob(".*.tmp"):
        owner = re.search(r"\.([^.]+)-(\d+)-[0-9a-f]{8}\.tmp$", left.name)
        if owner and owner[1] == _host() and not _is_alive(int(owner[2])):
            with contextlib.suppress(OSError):  # another process deletes it too, or we have no permission
                delete_path(left)


def delete_path(path: Path) -> None:
    """Delete a file, a link or a whole folder. Raises OSError."""
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def machine() -> str:
    """The name of this machine; in a container with a number, since containers count their processes separately."""
    try:
        space = str(Path("/proc/self/ns/pid").readlink())  # "pid:[4026532201]"
    except OSError:  # not Linux
        space = _NO_CONTAINER
    return socket.gethostname() + ("" if space == _NO_CONTAINER else f"-{space[5:-1]}")


def _host() -> str:
    """This machine's name, without dots, since dots separate the parts of a temporary name."""
    return machine().replace(".", "_")


def _is_alive(pid: int) -> bool:
    """Whether a process with this number exists on this machine. On Windows, where this is unknown, returns True."""
    if os.name != "posix":  # on Windows os.kill(pid, 0) would end the process
        return True
    try:
        os.kill(pid, 0)
        return True
    except PermissionError:  # another user's process
        return True
    except (ProcessLookupError, OverflowError):
        return False


def delete_file(path: Path, fix: str | None = None) -> None:
    """Delete a file if it is there. Raises StorageError."""
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise storage_error(path, error, fix) from None


def delete_folder(folder: Path) -> None:
    """Delete a folder. If the process is killed, the folder is whole, or `delete_unfinished` deletes the rest.

    It also deletes what cannot be deleted now: NFS keeps a file, under another name, as long as a process reads it.

    Raises OSError if the folder cannot be renamed.
    """
    work = temporary_path(folder)
    move(folder, work)
    shutil.rmtree(work, ignore_errors=True)


def only_ours(path: Path) -> bool:
    """Whether a path belongs to this user and no one else may write it. Always True on Windows. Raises OSError."""
    found = path.stat()
    return os.name != "posix" or (found.st_uid == os.getuid() and not found.st_mode & 0o022)


def private_folder(folder: Path) -> None:
    """Make a folder for compiled code that only this user may write. A folder that others may write is deleted first.

    Raises OSError if the folder belongs to another user, or cannot be made.
    """
    if folder.exists() and not only_ours(folder):
        if folder.stat().st_uid != os.getuid():
            raise PermissionError(errno.EPERM, "it is another user's")
        delete_folder(folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def move(work: Path, path: Path) -> None:
    """Rename a file or folder; a file that has the new name is replaced. Raises OSError.

    Windows refuses this while another process reads one of the files, so there it is tried for a second.
    """
    for pause in PAUSES if sys.platform == "win32" else ():
        with contextlib.suppress(PermissionError):
            work.replace(path)
            return
        time.sleep(pause)
    work.replace(path)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file; a killed process leaves the old or the new file. Raises OSError, and then the old file stays."""
    work = temporary_path(path)
    try:
        with work.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        move(work, path)
    except BaseException:
        with contextlib.suppress(OSError):  # only the first error is reported
            work.unlink()
        raise


def write_text(path: Path, text: str, fix: str | None = None, *, parents: bool = False) -> None:
    """Write a text in UTF-8 with `write_bytes`; `parents` makes its folder first. Raises StorageError."""
    try:
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, text.encode())
    except OSError as error:
        raise storage_error(path, error, fix) from None


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; {} for a missing or damaged file, of which the caller can do without."""
    try:
        return dict(parse_json(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync(path: Path) -> None:
    """Make the operating system write a file or directory to the disk (directories: not on Windows)."""
    windows = sys.platform == "win32"
    if windows and path.is_dir():
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)  # Windows writes only what is open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def replace_folder(work: Path, folder: Path) -> None:
    """Give a finished folder its final name, and delete an older folder with that name. Raises OSError."""
    old = aside(folder)
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        move(folder, old)
    move(work, folder)
    if old.exists():
        with contextlib.suppress(OSError):  # the new folder is in place
            delete_folder(old)
    sync(folder.parent)


def aside(folder: Path) -> Path:
    """The name that an older folder has while `replace_folder` replaces it."""
    return folder.with_name(f".{folder.name}-old")


def refuse_existing(out: Path) -> None:
    """Raise RunError if the path exists."""
    if out.exists():
        raise RunError(f"{out} exists, and nothing is overwritten; choose another with --out")


def check_writable(path: Path, fix: str) -> None:
    """Raise StorageError if a file cannot be written there, before long work begins. Missing folders are made later."""
    folder = next(folder for folder in path.parents if folder.exists())
    if not folder.is_dir():
        raise storage_error(path, NotADirectoryError(errno.ENOTDIR, f"{folder} is a file"), fix)
    if not os.access(folder, os.W_OK):
        raise storage_error(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)), fix)


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder. It is renamed to `out` if the `with` block ends without an error, else it is deleted.

    Raises StorageError if it cannot be written.
    """
    work = temporary_path(out)
    try:
        work.mkdir(parents=True)
        yield work
        move(work, out)
    except (OSError, SafetensorError, StorageError) as error:  # safetensors raises the second if the disk is full
        raise storage_error(out, error, "choose another with --out") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """Yield a path for a new file. The file is renamed to `out` if the block ends without an error, else deleted.

    Raises StorageError if it cannot be written.
    """
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        work = temporary_path(out)
        try:
            yield work
            sync(work)
            move(work, out)
        finally:
            if work.exists():  # missing if the folder cannot be written
                work.unlink()
    except (OSError, StorageError) as error:
        raise storage_error(out, error, "choose another with --out") from None


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Add one object to a JSON lines file, completely or not at all. Raises StorageError."""
    line = (json.dumps(value, ensure_ascii=False) + "\n").encode()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | NO_LINK, 0o666)
        with os.fdopen(handle, "ab", buffering=0) as file:
            end = file.tell()
            try:
                while line:
                    line = line[file.write(line) :]
            except OSError:
                with contextlib.suppress(OSError):  # only the first error is reported
                    file.truncate(end)  # else the next line would continue the part that was written
                raise
    except OSError as error:
        raise storage_error(path, error) from None


def keep_lines(path: Path, last_step: int) -> None:
    """Delete the lines after `last_step`, and an incomplete last line. A resumed run writes them again."""
    if not path.exists():
        return
    write_lines(path, [line for line in read_lines(path, _of_a_step) if line["step"] <= last_step])


def _of_a_step(line: Any) -> dict[str, Any]:
    """Check a line of a run's file: an object with a number `step`. Raises ValueError."""
    if not isinstance(line, dict) or not isinstance(line.get("step"), int | float):
        raise ValueError('no number "step"')
    return line


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a JSON lines file, completely or not at all. Raises StorageError."""
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_lines(path: Path, check: Callable[[Any], Any] = lambda value: value) -> list[Any]:
    """Read all objects of a JSON lines file, each passed through `check`, which raises ValueError for a bad one.

    A last line that has no line end and cannot be read is incomplete: it is still being written, or the process was
    killed. It is left out.

    Raises:
        RunError: the file cannot be read, or another line is damaged (the message has its number).
    """
    return GrowingLines(path, check).read()


class GrowingLines:
    """A JSON lines file that may grow: `read` returns all objects, as `read_lines`, but parses each line only once.

    If the last known line is not where it was, the file was replaced or lost lines: it is read from its beginning.
    """

    def __init__(self, path: Path, check: Callable[[Any], Any]):
        self.path, self.check = path, check
        self._start()

    def _start(self) -> None:
        self._last, self._end, self._number = b"", 0, 0  # the last whole line that was read, its end and its number
        self._found: list[Any] = []

    def read(self) -> list[Any]:
        """All objects so far. Raises RunError."""
        if not self.path.exists():
            return []
        try:
            with self.path.open("rb") as file:
                file.seek(self._end - len(self._last))
                if file.read(len(self._last)) != self._last:
                    self._start()
                    file.seek(0)
                *whole, last = file.read().split(b"\n")  # not splitlines: a text may contain U+2028
        except OSError as error:
            raise RunError(
                f"{self.path}: cannot be read ({error.strerror}); fix its permissions, or delete it"
            ) from None
        try:
            for line in whole:
                self._found += self._value(line)
                self._last, self._number = line + b"\n", self._number + 1
                self._end += len(self._last)
        except (ValueError, OverflowError) as error:  # includes UnicodeDecodeError
            where = f"{self.path}, line {self._number + 1}"
            raise RunError(f"{where}: damaged ({error}); correct or delete that line") from None
        with contextlib.suppress(ValueError, OverflowError):
            return [*self._found, *self._value(last)]
        return [*self._found]

    def _value(self, line: bytes) -> list[Any]:
        """[the line's object], or [] for a blank line."""
        return [self.check(parse_json(line))] if line.strip() else []
