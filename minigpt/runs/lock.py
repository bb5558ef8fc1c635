"""Let one process at a time work on a run, with a lock of the operating system on runs/NAME/.lock.

A crash releases the lock too. The file says who holds it. On a network file system the lock works across hosts if that
system's flock does. Some file systems have no flock, such as Lustre mounted without it. There a run is trained without
a lock, and a warning says so.
"""

import contextlib
import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from minigpt.errors import RunError, storage_error
from minigpt.files import NO_LINK, NO_LOCKS, delete_path, machine, move, parse_json, temporary_path
from minigpt.layout import LOCK

PAUSES = (0.01, 0.03, 0.1, 0.2)
"""Seconds between two tries to take the lock."""
PERMISSIONS = "free some space, or fix its permissions"


@contextmanager
def run_lock(path: Path, movable: bool = True) -> Iterator[None]:
    """Hold the run at `path`, which is created. At the end, directories with no other files are removed again.

    `movable`: the command can take another run or folder instead, so the errors name the flags for that.

    Raises:
        RunError: another process holds it; names its pid and host.
        StorageError: cannot be written.
    """
    file, fix = path / LOCK, None if movable else PERMISSIONS
    made = [folder for folder in path.parents if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        handle = os.open(file, os.O_RDWR | os.O_CREAT | NO_LINK, 0o666)
    except OSError as error:
        raise storage_error(path, error, fix) from None
    try:
        if not _take(handle) or not (file.exists() and os.path.samestat(file.stat(), os.fstat(handle))):
            other = ", or choose a new --name" if movable else ""
            raise RunError(f"{path} is being trained by {_holder(file)}; wait for it or end it{other}")
        _sign(handle, path, fix)
        try:
            yield
        finally:
            # the file may be gone, read-only, or another process's in a new run of this name; the error that ended the
            # block matters more
            with contextlib.suppress(OSError):
                if os.path.samestat(file.stat(), os.fstat(handle)):
                    _take_away(path, made)
    finally:
        os.close(handle)


def _take_away(path: Path, made: list[Path]) -> None:
    """Delete the lock of a directory that holds nothing else, and the directories that were made for it."""
    if sys.platform != "win32" and [entry.name for entry in path.iterdir()] == [LOCK]:
        (path / LOCK).unlink()
        for folder in (path, *made):
            if not any(folder.iterdir()):
                folder.rmdir()


def _take(handle: int) -> bool:
    """Try to take the lock; True if it worked. `is_held` of another process takes it for a moment, so several tries are
    made.
    """
    for pause in PAUSES:
        if _try(handle):
            return True
        time.sleep(pause)
    return _try(handle)


def _try(handle: int) -> bool:
    """Try once to take the lock; True if it worked."""
    try:
        if sys.platform == "win32":
            import msvcrt

            # Windows blocks other processes from locked bytes: lock bytes after the text
            os.lseek(handle, 1 << 20, os.SEEK_SET)
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
            os.lseek(handle, 0, os.SEEK_SET)
        else:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            return False
        warnings.warn("this file system has no locks: train a run in one process at a time", stacklevel=4)
    return True


def _sign(handle: int, path: Path, fix: str | None) -> None:
    try:
        os.ftruncate(handle, 0)
        os.write(handle, json.dumps({"pid": os.getpid(), "host": machine()}).encode())
    except OSError as error:
        raise storage_error(path, error, fix) from None


def _holder(file: Path) -> str:
    """The holder as the lock file names it: process 123 on HOST."""
    try:
        owner = parse_json(file.read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']}"
    except (OSError, ValueError, KeyError, TypeError):  # the process has not written it yet
        return "another process"


def delete_run(path: Path) -> None:
    """Delete a run with all its files. Raises RunError if a process holds it, StorageError.

    Windows renames no folder that has an open file, such as the lock. So there the lock is given back first, and a
    process that takes it just then keeps its run.
    """
    windows, work = sys.platform == "win32", temporary_path(path)
    try:
        with run_lock(path, movable=False):
            if not windows:
                move(path, work)
        if windows:
            move(path, work)
        delete_path(work)  # after the lock is closed: NFS keeps a folder with an open file
    except OSError as error:
        raise storage_error(path, error, PERMISSIONS) from None


def is_held(file: Path) -> bool:
    """Whether a process holds the lock. Asking takes it for a moment, on POSIX together with others who ask."""
    if not file.is_file():
        return False
    try:
        opened = file.open("rb")
    except FileNotFoundError:  # the run was deleted just now
        return False
    with opened:
        if sys.platform == "win32":
            return not _try(opened.fileno())
        import fcntl

        try:
            fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
    return False


def holder(file: Path) -> int | None:
    """The process of this machine that holds the lock; None if there is none, or if another machine has it."""
    return last_holder(file) if is_held(file) else None


def last_holder(file: Path) -> int | None:
    """The process of this machine that holds the lock, or held it last; None if it was on another machine."""
    try:
        owner = parse_json(file.read_text(encoding="utf-8"))
        return int(owner["pid"]) if owner["host"] == machine() else None
    except (OSError, ValueError, KeyError, TypeError):  # the process has not written it yet
        return None
