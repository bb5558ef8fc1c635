"""Read text files, gzip files, files in zip archives and standard input as streams of decoded blocks.

Files are read in blocks of 1 MiB, so memory does not grow with the file. Gzip is recognised by its first bytes, not by
its name. A byte-order mark at the start is dropped.
"""

import atexit
import codecs
import gzip
import io
import re
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import IO

from minigpt.errors import DataError, EncodingError, nearest, storage_error
from minigpt.files import temporary_path
from minigpt.tokenizers.base import valid_unicode

Blocks = Iterator[str]
"""One document, as consecutive pieces of its text. Read it before you ask for the next document."""

BLOCK = 1 << 20  # bytes read at a time
HEAD = 1 << 16  # bytes that are read to find out the kind of a file
MOST_PIPED = 1 << 30  # most bytes of standard input

_SIGNATURES = {
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a zip archive (or an office document)",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"\x7fELF": "a program",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
}
_MARKS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_WIDE = ("utf-16", "utf-32")


def check_encoding(encoding: str) -> None:
    """Raise DataError if this is not the name of a text encoding."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        common = ("utf-8", "latin-1", "cp1252", "utf-16", "ascii", "gb18030", "shift_jis", "euc-kr", "koi8-r")
        raise DataError(f"data.encoding: no such encoding: {encoding}; {nearest(encoding, common)}") from None


def head(path: Path) -> tuple[bytes, bool]:
    """The first bytes of a file, unpacked, and whether this is the whole file. Raises DataError if unreadable."""
    with _open(path) as file:
        start = _read(file, HEAD, path)
    return start, len(start) < HEAD


def binary_reason(path: Path, encoding: str) -> str | None:
    """The reason why a file looks binary, or None for text. Raises DataError if it cannot be read."""
    data, _ = head(path)
    for signature, name in _SIGNATURES.items():
        if data.startswith(signature):
            return f"is {name}"
    if codecs.lookup(encoding).name.startswith(_WIDE):
        return None
    for mark, name in _MARKS.items():
        if data.startswith(mark):
            return f"starts with the mark of {name}; convert it to {encoding}, or give --data.encoding {name}"
    at = data.find(b"\0")
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # in UTF-16 every other byte of Latin text is 0
        if data[first::2].count(0) > 0.4 * len(data) > 20 * data[1 - first :: 2].count(0):
            return f"looks like {name}; convert it to {encoding}, or give --data.encoding {name}"
    if at >= 0:
        return f"has a zero byte at {at:,}"
    odd = len(re.findall(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]", data))
    return f"has {odd:,} control characters in its first {len(data):,} bytes" if odd > max(8, len(data) // 20) else None


@lru_cache(maxsize=1)
def spool_stdin() -> Path:
    """Copy standard input to a temporary file, once per process, since text is read more than once.

    The file is deleted at the end; what a killed process left is deleted by the next one.
    """
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("-: nothing is piped in; write: cat my.txt | minigpt train -")
    try:
        path = temporary_path(Path(tempfile.gettempdir(), "minigpt-stdin"))
        path.touch(0o600, exist_ok=False)
        atexit.register(path.unlink, missing_ok=True)
        with path.open("wb") as file:
            while block := sys.stdin.buffer.read(BLOCK):
                file.write(block)
                if file.tell() > MOST_PIPED:
                    raise DataError(f"standard input: is longer than {MOST_PIPED >> 30} GB; name a file, not -")
    except OSError as error:  # closing writes the buffer, so the disk may be full there too
        raise storage_error("a copy of standard input", error, "name another place with TMPDIR") from None
    return path


def _open(path: Path) -> io.BufferedIOBase:
    try:
        file = path.open("rb")
        if file.peek(2)[:2] == b"\x1f\x8b":
            file.close()
            return gzip.open(path)
    except OSError as error:
        raise unreadable(path, error) from None
    if path.suffix == ".gz" and path.stat().st_size:
        file.close()
        raise DataError(f"{path}: is not gzip, although its name says so; rename it, or compress it again")
    return file


def _read(file: io.BufferedIOBase, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip is broken ({error}); fetch or compress it again") from None
    except OSError as error:
        raise unreadable(path, error) from None


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a path that the system cannot read."""
    return DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions")


def decoded(path: Path, encoding: str, label: str) -> Blocks:
    """Decode the text of a file. Raises EncodingError naming the wrong byte, DataError if it cannot be read."""
    with _open(path) as file:
        yield from _decoded(partial(_read, file, BLOCK, path), encoding, label)


def zipped(path: Path, member: str, start: int = 0, stop: int | None = None) -> Blocks:
    """Decode a UTF-8 file in a zip archive: its bytes from start to stop (default: all).

    A character across `start` or `stop` belongs to the part in which it begins. An incomplete character at the end of
    the file is dropped.

    Raises:
        DataError: not a zip archive with this file, or not readable.
        EncodingError: not UTF-8.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            yield from _decoded(partial(next, _between(file, start, stop), b""), "utf-8", f"{path}: {member}", False)
    except (zipfile.BadZipFile, KeyError, zlib.error, EOFError) as error:
        raise DataError(f"{path}: is not a zip archive that holds {member} ({error}); fetch it again") from None
    except OSError as error:
        raise unreadable(path, error) from None


def _between(file: IO[bytes], start: int, stop: int | None) -> Iterator[bytes]:
    """Yield the bytes from start to stop in blocks. Both ends move forward to the beginning of a UTF-8 character."""
    inside = bytes(range(0x80, 0xC0))  # bytes with which no character begins
    file.seek(start)
    at = start
    while block := file.read(BLOCK if stop is None else min(BLOCK, stop - at)):
        yield block.lstrip(inside) if at == start > 0 else block
        at += len(block)
    while stop is not None and (byte := file.read(1)) and byte in inside:
        yield byte


def _decoded(read: Callable[[], bytes], encoding: str, label: str, whole: bool = True) -> Blocks:
    """Decode the blocks that `read` returns until it returns b"". `whole`: an incomplete last character is an error."""
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    before = 0  # bytes read in earlier blocks
    while True:
        block = read()
        try:
            text = decoder.decode(block, final=whole and not block)
        except UnicodeDecodeError as error:
            # error.object: the bytes that the decoder kept from the last block, and this block
            at = before + len(block) - len(error.object) + error.start
            raise _undecodable(label, at, error, encoding) from None
        except UnicodeError as error:
            raise EncodingError(f"{label}: is not {encoding} ({error}); try --data.encoding utf-8") from None
        text = valid_unicode(text)  # utf-7 and others let invalid characters through
        if before == 0:
            text = text.removeprefix("\ufeff")
        if text:
            yield text
        if not block:
            return
        before += len(block)


def _undecodable(label: str, at: int, error: UnicodeDecodeError, encoding: str) -> EncodingError:
    often = "cp1252 (Western), cp1251 (Cyrillic), gb18030 (Chinese), shift_jis (Japanese); latin-1 takes any byte"
    other = often if codecs.lookup(encoding).name == "utf-8" else "utf-8"
    fix = f"convert it to {encoding}, or name its encoding, such as --data.encoding {other}"
    return EncodingError(f"{label}: byte {at:,} (0x{error.object[error.start]:02x}) is not {encoding}; {fix}")
