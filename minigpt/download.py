"""Download a published file: resume broken transfers, check the sha256, and put the file in place atomically.

Bytes are written to NAME.part next to the target. A broken transfer continues where it stopped (HTTP Range), in this
run (a few tries) or in the next. A file gets its final name only if its sha256 is right, so a file with that name is
always complete. Processes that want the same file wait for each other at a lock. A transfer is limited: MOST bytes at
most, and at least SLOWEST bytes in any PATIENCE seconds.

`locate` first looks in $MINIGPT_DATA (a mirror), then in the cache ($MINIGPT_CACHE, else ~/.cache/minigpt), and then
downloads. Each process checks the sha256 of a file that it finds, which takes 1 ms per MB.
"""

import http.client
import os
import queue
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

from minigpt import __version__
from minigpt.errors import DataError, storage_error
from minigpt.files import NO_LOCKS, expand_home, file_sha256, find

Progress = Callable[[str, int, "int | None"], None]
"""Called as progress(label, done, total): what is being done, how much of it is done, and the total (None: unknown)."""

_BLOCK = 1 << 18
_TRIES = 4
_TIMEOUT = 20.0  # seconds without a byte
MOST = 4 << 30
"""Limit of a published file in bytes; the longest one has 2.2 GB."""
SLOWEST, PATIENCE = 1 << 14, 30.0
"""At least SLOWEST bytes must arrive in PATIENCE seconds."""


@dataclass(frozen=True)
class RemoteFile:
    """One published file. `sha256` lists the accepted digests, the published one first."""

    path: str
    url: str
    sha256: tuple[str, ...]


class _BrokenError(Exception):
    """The transfer stopped before its end."""


def fetch(
    url: str, path: Path, sha256: Collection[str], progress: Progress | None = None, wait: float = 1.0, hint: str = ""
) -> Path:
    """Download a file to `path`, unless it is there already.

    Args:
        url: public address (http or https).
        path: final place of the file.
        sha256: accepted hex digests.
        progress: called with (file name, bytes done, all bytes or None).
        wait: seconds before the second try; doubled for each further try.
        hint: added to the error if the address cannot be reached.

    Raises:
        DataError: the address cannot be reached, or it sent another file.
        StorageError: the place cannot be written, or the disk is full.
    """
    if path.exists():
        return path
    part = path.with_name(path.name + ".part")
    with _storage(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    waiting = f"waiting for another process, which downloads {path.name}"
    with _lock(path.parent, lambda: progress and progress(waiting, 0, None)):
        if path.exists():  # another process downloaded it while this one waited for the lock
            return path
        with _storage(path), part.open("ab") as file:  # closing writes the buffer, so the disk may be full there too
            _transfer(url, file, path.name, progress, wait, hint)
            os.fsync(file.fileno())
        found = file_sha256(part)
        if found not in sha256:
            with suppress(OSError):  # only the first error is reported
                part.unlink()
            raise DataError(
                f"{url}: the file has sha256 {found[:16]}…, not {next(iter(sha256))[:16]}…; it was deleted, "
                "try again, or download it in another way" + hint
            )
        with _storage(path):
            part.replace(path)
    return path


def cache_root(cache_dir: str | None = None) -> Path:
    """`cache_dir`, else $MINIGPT_CACHE, else ~/.cache/minigpt."""
    text = cache_dir or os.environ.get("MINIGPT_CACHE") or "~/.cache/minigpt"
    return Path(expand_home(text, "name a cache directory in full with MINIGPT_CACHE"))


def locate(file: RemoteFile, progress: Progress | None = None) -> Path:
    """Find a published file on this machine, or download it.

    Raises:
        DataError: the file is not here and cannot be downloaded, or another file is in its place.
        StorageError: the cache cannot be written.
    """
    mirror = os.environ.get("MINIGPT_DATA")
    cached = cache_root() / "datasets" / file.path
    for path in ([Path(expand_home(mirror)) / file.path] if mirror else []) + [cached]:
        try:
            there = find(path)
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror}); fix MINIGPT_DATA or MINIGPT_CACHE") from None
        if there and stat.S_ISREG(there.st_mode):
            return _checked(path, file, is_mirror=path != cached)
    hint = f"; put the file at {cached} by hand, or name a directory that holds {file.path} with MINIGPT_DATA"
    return fetch(file.url, cached, file.sha256, progress, hint=hint)


def digest(path: Path) -> str:
    """The sha256 of a file, computed once per process as long as its size and change time stay. Raises OSError."""
    there = path.stat()
    return _digest(path, there.st_size, there.st_mtime_ns)


@lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime_ns: int) -> str:
    return file_sha256(path)


def _checked(path: Path, file: RemoteFile, is_mirror: bool) -> Path:
    try:
        found = digest(path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fix its permissions") from None
    if found not in file.sha256:
        fix = "correct the mirror, or unset MINIGPT_DATA" if is_mirror else "delete it, so that it is fetched"
        raise DataError(f"{path}: sha256 {found[:16]}… is not the published {file.sha256[0][:16]}…; {fix}")
    return path


def _transfer(url: str, file: BinaryIO, label: str, progress: Progress | None, wait: float, hint: str) -> None:
    """Append to `file` until the download is complete. Tries several times, and continues as long as bytes arrive."""
    tries = 0
    while True:
        start = file.tell()
        try:
            return _request(url, file, label, progress)
        except (_BrokenError, http.client.HTTPException, OSError) as error:
            tries = 1 if file.tell() - start >= SLOWEST else tries + 1  # count from 1 again after enough bytes
            if tries >= _TRIES or _is_final(error, start):
                reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
                raise DataError(f"{url}: cannot be fetched ({reason})" + hint) from None
            time.sleep(wait * 2 ** (tries - 1))


def _is_final(error: Exception, start: int) -> bool:
    """Whether trying again cannot help: the server has no such file, or no network was there from the start."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code < 500 and error.code != 429  # 429 and 5xx: the server is busy
    return isinstance(error, urllib.error.URLError) and start == 0


def _request(url: str, file: BinaryIO, label: str, progress: Progress | None) -> None:
    """Make one request, from the end of the file on. Raises _BrokenError if it stops early."""
    have = file.tell()
    # Some sites refuse Python's default User-Agent.
    headers = {"User-Agent": f"minigpt/{__version__}", **({"Range": f"bytes={have}-"} if have else {})}
    request = urllib.request.Request(url, headers=headers)
    try:
        response = _answer(request)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # the server has no more bytes: our part is complete, or it is from another file
            if error.headers.get("Content-Range", "").strip() == f"bytes */{have}":
                return
            _empty(file)
            raise _BrokenError("the server does not have the rest of the file") from None
        raise
    with response:
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if have and not resumed:  # the server has no ranges and sends the whole file again
            _empty(file)
            have = 0
        length = response.headers.get("Content-Length") or ""
        total = have + int(length) if length.isdecimal() and len(length) < 20 else None
        due, since = time.monotonic() + PATIENCE, have
        while block := response.read1(_BLOCK):
            if max(have + len(block), total or 0) > MOST:
                _empty(file)
                raise DataError(f"{url}: sends more than {MOST >> 20} MB, which no published file has; try again later")
            if time.monotonic() > due:
                if have - since < SLOWEST:
                    came = f"{have - since:,} bytes in {PATIENCE:g} seconds"
                    raise DataError(
                        f"{url}: is too slow ({came}); the same command continues from there, try again later"
                    )
                due, since = time.monotonic() + PATIENCE, have
            with _storage(Path(file.name)):
                file.write(block)
                file.flush()
            have += len(block)
            if progress:
                progress(label, have, total)
    if total is not None and have < total:
        raise _BrokenError(f"the connection broke after {have:,} of {total:,} bytes")


def _answer(request: urllib.request.Request) -> http.client.HTTPResponse:
    """Wait for the beginning of an answer. Raises the errors of urlopen, and _BrokenError if it takes too long.

    urlopen runs in a thread, since a server that sends its header very slowly could keep it waiting forever.
    """
    box: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ask() -> None:
        try:
            box.put(urllib.request.urlopen(request, timeout=_TIMEOUT))
        except (http.client.HTTPException, OSError, ValueError) as error:
            box.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        found = box.get(timeout=PATIENCE)
    except queue.Empty:
        raise _BrokenError(f"no answer in {PATIENCE:g} seconds") from None
    if isinstance(found, ValueError):  # an answer that is not HTTP
        raise _BrokenError(str(found))
    if isinstance(found, Exception):
        raise found
    return found


def _empty(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate()


@contextmanager
def _storage(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise storage_error(
            path, error, "free some space, or name another cache directory with MINIGPT_CACHE"
        ) from None


@contextmanager
def _lock(folder: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Hold an exclusive lock on the directory; `busy` is called before waiting for another process.

    Systems without such locks (Windows, and some network file systems) continue without one.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            busy()
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        yield
    finally:
        os.close(handle)
