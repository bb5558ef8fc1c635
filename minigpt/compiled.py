"""Load a C file of this package as a library: compile it once with the system's compiler, cache it, test it.

A library uses torch's OpenMP threads: it is not linked against OpenMP, and finds the one that torch has loaded.

Compiled libraries are kept in the cache directory as kernels/KEY.so, where KEY is a hash of source, flags and
processor. Since a library is code, it is loaded only if no other user can have written it: this user owns the file and
its folder, no one else may write there, and its sha256 is in kernels.json, outside of the folder. Otherwise it is
compiled again in a private folder. If the cache cannot have such a folder, or is full, a temporary one is used, and
deleted after the library is loaded.
"""

import contextlib
import hashlib
import itertools
import json
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from minigpt.console import tell
from minigpt.download import cache_root
from minigpt.files import file_sha256, json_object, only_ours, private_folder, temporary_path, write_bytes

HEADER = Path(__file__).with_suffix(".h")
"""The code that all C files share; it is included before each."""
_ALWAYS = "-O3 -std=gnu11 -fPIC -shared -fassociative-math -fno-signed-zeros -fno-trapping-math -fno-math-errno".split()
_LINK = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-nodefaultlibs"]
_OPENMP = ["-Xclang", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
_CHOICES = [*itertools.product((_OPENMP, []), (["-march=native"], []))]
"""Flags to try one after another, since some compilers do not know all of them."""
ROOM = 1 << 20
"""Bytes that must be free for a library."""


class KernelError(Exception):
    """The library does not work here; torch's own operations are used instead."""


class Library(Protocol):
    """The method that a loaded library must have."""

    def check(self) -> None:
        """Compare some results with the correct results. Raises KernelError if they differ."""


Loaded = TypeVar("Loaded", bound=Library)


def load(source: Path, make: Callable[[Path], Loaded]) -> Loaded:
    """Find or compile a library that loads and computes correctly.

    Args:
        source: the C file.
        make: loads the library at a path; its `check` is called before it is used.

    Raises:
        KernelError, OSError: there is no compiler, or no compiled library works.
    """
    text, folder = HEADER.read_bytes() + source.read_bytes(), cache_root() / "kernels"
    choices: dict[str, list[str]] = {}
    for openmp, native in _CHOICES:
        flags = [*_ALWAYS, *openmp, *native]
        parts = [text, " ".join(flags).encode(), _processor()]
        choices[hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]] = flags
    for key in choices:  # all, before one is compiled: the compiler may have refused the first flags
        if found := _kept(folder, key, make):
            return found
    compiler = _compiler()
    if compiler is None:
        raise KernelError("no C compiler (cc, gcc or clang) is here")
    tell(f"compiling {source.name} for this processor, once")
    reason: Exception = KernelError("nothing was tried")
    for key, flags in choices.items():
        try:
            return _compiled([compiler, *flags, *_LINK], source, folder, key, make)
        except (KernelError, OSError) as error:
            reason = error
    raise reason


def _processor() -> bytes:
    """The processor's facts on which -march=native depends, since machines may share a cache directory."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        lines = facts.read_text(encoding="utf-8").splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        ).encode()
    return f"{platform.machine()} {platform.processor()}".encode()


def _compiler() -> str | None:
    """The system's C compiler; None on Windows, where libraries are built in another way."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang") if sys.platform != "win32")
    return next((path for path in found if path), None)


def _kept(folder: Path, key: str, make: Callable[[Path], Loaded]) -> Loaded | None:
    """Load a library that was compiled earlier; None if it is another user's, has changed, or computes wrongly."""
    path = folder / f"{key}.so"
    with contextlib.suppress(KernelError, OSError):
        if only_ours(folder) and only_ours(path) and file_sha256(path) == _hashes(folder).get(key):
            library = make(path)
            library.check()
            return library
    return None


def _hashes(folder: Path) -> dict[str, Any]:
    """The sha256 of each library, by its key. A library that is missing here is compiled again."""
    return json_object(folder.with_suffix(".json"))


def _compiled(command: list[str], source: Path, folder: Path, key: str, make: Callable[[Path], Loaded]) -> Loaded:
    """Compile, load and check a library, and keep it if the folder is private. Raises KernelError, OSError."""
    name = f"{source.stem}.so"
    with _private(folder, name) as scratch:
        made = scratch / name
        words = [*command, "-include", str(HEADER), "-o", str(made), str(source)]
        done = subprocess.run(words, capture_output=True, encoding="utf-8", errors="replace", check=False)
        if done.returncode:
            raise KernelError(f"{command[0]} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        library = make(made)
        library.check()
        if scratch.parent == folder:
            made.chmod(0o700)
            hashes = _hashes(folder) | {key: file_sha256(made)}
            write_bytes(folder.with_suffix(".json"), (json.dumps(hashes, indent=1) + "\n").encode())
            made.replace(folder / f"{key}.so")
    return library


@contextlib.contextmanager
def _private(folder: Path, name: str) -> Iterator[Path]:
    """A folder that only this user can write, deleted at the end: in `folder`, or elsewhere if it cannot be private."""
    try:
        scratch = _scratch(folder, name)
    except OSError as error:  # compiling at each start only costs a second or two
        warnings.warn(f"compiled kernels are not kept: {folder}: {error.strerror}", stacklevel=2)
        scratch = Path(tempfile.mkdtemp(prefix="minigpt-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _scratch(folder: Path, name: str) -> Path:
    """A new private folder in `folder`, with room for a library. Raises OSError."""
    private_folder(folder)
    scratch = temporary_path(folder / name)
    try:
        scratch.mkdir(mode=0o700)
        (scratch / name).write_bytes(bytes(ROOM))  # the compiler's error would not say that the disk is full
    except OSError:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return scratch
