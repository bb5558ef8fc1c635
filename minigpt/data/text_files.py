"""Files -> documents, as streams of decoded blocks: plain text, JSON lines, gzip of either, standard input.

Memory does not grow with the file: a plain text is one document read in blocks of 1 MiB; of JSON lines one line
is held at a time. Gzip is told by its first bytes, not by its name. A byte-order mark at the start is dropped.
"""

import atexit
import codecs
import gzip
import io
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigpt.errors import DataError, EncodingError, nearest, storage_error
from minigpt.tokenizers.base import valid_unicode

Blocks = Iterator[str]
"""One document, as consecutive pieces of its text. Take all you want of it before the next document."""

BLOCK = 1 << 20  # bytes read at a time
JSON_LINES = (".jsonl", ".ndjson")

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
    """Raises DataError for a name that is no text encoding."""
    try:
        "".encode(encoding)
    except (LookupError, ValueError):
        common = ("utf-8", "latin-1", "cp1252", "utf-16", "ascii", "gb18030", "shift_jis", "euc-kr", "koi8-r")
        raise DataError(f"data.encoding: no such encoding: {encoding}; {nearest(encoding, common)}") from None


def is_json_lines(path: Path) -> bool:
    """Whether the name says JSON lines: x.jsonl, x.ndjson, x.jsonl.gz."""
    names = path.suffixes[-2:]
    return path.suffix in JSON_LINES or (len(names) == 2 and names[1] == ".gz" and names[0] in JSON_LINES)


def binary_reason(path: Path, encoding: str) -> str | None:
    """What makes a file look binary, or None for text. Raises DataError if it cannot be read."""
    with _open(path) as file:
        head = _read(file, 1 << 16, path)
    for signature, name in _SIGNATURES.items():
        if head.startswith(signature):
            return f"is {name}"
    if codecs.lookup(encoding).name.startswith(_WIDE):
        return None
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return f"starts with the mark of {name}; try --data.encoding {name}"
    at = head.find(b"\0")
    for first, name in ((1, "utf-16-le"), (0, "utf-16-be")):  # every other byte of Latin text is zero there
        if head[first::2].count(0) > 0.4 * len(head) > 20 * head[1 - first :: 2].count(0):
            return f"looks like {name}; try --data.encoding {name}"
    if at >= 0:
        return f"has a zero byte at {at:,}"
    odd = len(re.findall(rb"[\x01-\x06\x0e-\x1a\x1c-\x1f]", head))
    return f"has {odd:,} control characters in its first {len(head):,} bytes" if odd > max(8, len(head) // 20) else None


def read_documents(path: Path, encoding: str, field: str, label: str | None = None) -> Iterator[Blocks]:
    """The documents of one file: one for a plain text, one a line for JSON lines.

    Raises:
        EncodingError: bytes that are not in the encoding, with the byte's offset.
        DataError: unreadable, a broken gzip, or a line that is no object with the field.
    """
    label = label or str(path)
    if not is_json_lines(path):
        yield _decoded(path, encoding, label)
        return
    for number, line in numbered_lines(path, encoding, label):
        yield iter((_field(line, field, f"{label} line {number:,}"),))


def numbered_lines(path: Path, encoding: str, label: str | None = None) -> Iterator[tuple[int, str]]:
    """(number from 1, text) of every line that is not blank. Raises as `read_documents`."""
    for number, line in enumerate(_lines(_decoded(path, encoding, label or str(path))), 1):
        if line and not line.isspace():
            yield number, line


@lru_cache(maxsize=1)
def spool_stdin() -> Path:
    """Standard input copied to a temporary file, once a process, as text is read more than once."""
    if sys.stdin is None or sys.stdin.isatty():
        raise DataError("-: nothing is piped in; write: cat my.txt | minigpt train -")
    with tempfile.NamedTemporaryFile(prefix="minigpt-stdin-", delete=False) as file:
        path = Path(file.name)
        atexit.register(path.unlink, missing_ok=True)
        try:
            while block := sys.stdin.buffer.read(BLOCK):
                file.write(block)
            file.flush()
        except OSError as error:
            raise storage_error(path, error, "name another place with TMPDIR") from None
    return path


def _open(path: Path) -> io.BufferedIOBase:
    try:
        file = path.open("rb")
        if file.peek(2)[:2] == b"\x1f\x8b":
            file.close()
            return gzip.open(path)
    except OSError as error:
        raise _unreadable(path, error) from None
    if path.suffix == ".gz" and path.stat().st_size:
        file.close()
        raise DataError(f"{path}: is not gzip, whatever its name says; rename it, or compress it again")
    return file


def _read(file: io.BufferedIOBase, size: int, path: Path) -> bytes:
    try:
        return file.read(size)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the gzip is broken ({error}); fetch or compress it again") from None
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions")


def _decoded(path: Path, encoding: str, label: str) -> Blocks:
    decoder = codecs.getincrementaldecoder(encoding)("strict")
    before = 0  # bytes read in earlier blocks
    with _open(path) as file:
        while True:
            block = _read(file, BLOCK, path)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # error.object is what the decoder had kept of the last block and then this one
                at = before + len(block) - len(error.object) + error.start
                raise _undecodable(label, at, error, encoding) from None
            except UnicodeError as error:
                raise EncodingError(f"{label}: is not {encoding} ({error}); try --data.encoding utf-8") from None
            text = valid_unicode(text)  # utf-7 and its like let them through
            if before == 0:
                text = text.removeprefix("\ufeff")
            if text:
                yield text
            if not block:
                return
            before += len(block)


def _undecodable(label: str, at: int, error: UnicodeDecodeError, encoding: str) -> EncodingError:
    other = "cp1252, or latin-1, which takes any byte" if codecs.lookup(encoding).name == "utf-8" else "utf-8"
    return EncodingError(
        f"{label}: byte {at:,} (0x{error.object[error.start]:02x}) is not {encoding}; name the file's encoding, "
        f"--data.encoding {other}"
    )


def _lines(blocks: Iterable[str]) -> Iterator[str]:
    """Lines without their \\n (only that ends a line: JSON may hold other line separators)."""
    open_: list[str] = []
    for block in blocks:
        first, *rest = block.split("\n")
        open_.append(first)
        for line in rest:
            yield "".join(open_)
            open_ = [line]
    yield "".join(open_)


def _field(line: str, field: str, where: str) -> str:
    return text_of(json_object(line, where, f', like {{"{field}": "..."}}'), field, where)


def json_object(line: str, where: str, example: str = "") -> dict[str, Any]:
    """What a line of JSON lines holds. Raises DataError, whose hint ends with the example."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: is not JSON ({error}); each line is one object{example}") from None
    if not isinstance(value, dict):
        raise DataError(f"{where}: is not an object, but {type(value).__name__}; each line is one object{example}")
    return value


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The field that holds the text. Raises DataError naming the fields there are."""
    if field not in row:
        names = ", ".join(map(str, row)) or "none"
        raise DataError(f"{where}: has no field {field!r}, but {names}; name one with --data.text-field")
    text = row[field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {field!r} holds {type(text).__name__}, not text; name another with --data.text-field"
        )
    return valid_unicode(text)  # JSON may hold half of a \ud83d\ude00 pair
