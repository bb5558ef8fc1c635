"""Write and read token files: a 128-byte header, then the ids as little-endian uint16 or uint32, memory-mapped.

    0    8  magic "minigpt\\0"        24   4  CRC-32 of the ids
    8    4  version                  28  64  fingerprint of the tokenizer (hex), zero-padded
    12   4  bytes per id: 2 or 4     92  32  zeros
    16   8  number of ids           124   4  CRC-32 of the 124 bytes before

The header's checksum and the file's size are checked whenever a file is opened, so a truncated file or a changed
header is always found. The checksum of the ids (4 GB/s here) is checked on opening if the file has at most 256 MiB;
for larger files call `verify`.
"""

import contextlib
import os
import secrets
import struct
import zlib
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from minigpt.errors import TokenFileError, storage_error

MAGIC, VERSION = b"minigpt\0", 1
CHECKED_ON_OPENING = 256 << 20  # bytes

_HEAD = struct.Struct("<8sIIQI64s32x")
_SIZE = _HEAD.size + 4
ANOTHER_CACHE = "free some space, or name another place with MINIGPT_CACHE or --data.cache-dir"
_FIX = "prepare the data again: minigpt prepare SOURCE"


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest dtype that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class TokenWriter:
    """Writes a token file, completely or not at all.

    with TokenWriter(path, vocab_size, fingerprint) as writer:
        writer.append(ids)

    The file is renamed to its final name when the block ends without an error. Raises StorageError if it cannot be
    written, ValueError for an id outside the vocabulary.
    """

    def __init__(self, path: Path, vocab_size: int, fingerprint: str):
        self.path, self.vocab_size, self.fingerprint = Path(path), vocab_size, fingerprint
        self.dtype = token_dtype(vocab_size)
        self.count = 0
        self._crc = 0
        self._file: BinaryIO | None = None
        self._temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")

    def __enter__(self) -> "TokenWriter":
        try:
            self._file = self._temporary.open("xb", buffering=1 << 20)
            self._file.write(bytes(_SIZE))
        except OSError as error:
            raise storage_error(self.path, error, ANOTHER_CACHE) from None
        return self

    def append(self, ids: np.ndarray) -> None:
        """Add ids, of any integer dtype."""
        assert self._file is not None, "append belongs inside the with block"
        if len(ids) == 0:
            return
        if int(ids.min()) < 0 or int(ids.max()) >= self.vocab_size:
            raise ValueError(f"ids {ids.min()}..{ids.max()} are not all in a vocabulary of {self.vocab_size}")
        block = np.ascontiguousarray(ids, dtype=self.dtype)
        self._crc = zlib.crc32(block.data, self._crc)
        self.count += len(block)
        try:
            self._file.write(block.data)
        except OSError as error:
            raise storage_error(self.path, error, ANOTHER_CACHE) from None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        file = self._file
        assert file is not None
        try:
            try:
                if kind is None:
                    file.seek(0)
                    file.write(_header(self.dtype, self.count, self._crc, self.fingerprint))
                    file.flush()
                    os.fsync(file.fileno())
            finally:
                file.close()  # writes the buffer, so the disk may be full here too
            if kind is None:
                self._temporary.replace(self.path)
        except OSError as failure:
            raise storage_error(self.path, failure, ANOTHER_CACHE) from None
        finally:
            with contextlib.suppress(OSError):  # only the first error is reported
                self._temporary.unlink(missing_ok=True)


class TokenFile:
    """A token file, memory-mapped.

    Args:
        path: the file.
        fingerprint: fingerprint of the tokenizer that must have made it (None: any tokenizer).

    Attributes:
        count: number of ids.
        dtype: uint16 or uint32.
        fingerprint: fingerprint of the tokenizer that made it.

    Raises:
        TokenFileError: missing, truncated, altered, not a token file, of another version or another tokenizer.
    """

    def __init__(self, path: str | Path, fingerprint: str | None = None):
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                header, size = file.read(_SIZE), os.fstat(file.fileno()).st_size
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        if not header.startswith(MAGIC):
            raise self._error("is not a token file")
        if len(header) < _SIZE:
            raise self._error("is cut off in its header")
        _, version, width, self.count, self._crc, mark = _HEAD.unpack(header[: _HEAD.size])
        if zlib.crc32(header[: _HEAD.size]) != int.from_bytes(header[_HEAD.size :], "little"):
            raise self._error("has an altered header")
        if version != VERSION or width not in (2, 4):
            raise self._error(f"has format version {version}, this is version {VERSION}")
        self.dtype = np.dtype(f"<u{width}")
        self.fingerprint = mark.rstrip(b"\0").decode("ascii")
        if size != _SIZE + self.count * width:
            raise self._error(f"is {size:,} bytes long, its header says {_SIZE + self.count * width:,}")
        if fingerprint is not None and fingerprint != self.fingerprint:
            raise self._error(f"was made by another tokenizer ({self.fingerprint[:12]}…, not {fingerprint[:12]}…)")
        if size <= CHECKED_ON_OPENING:
            self.verify()

    @cached_property
    def tokens(self) -> np.ndarray:
        """All ids [count], read-only, memory-mapped from the file."""
        if not self.count:  # an empty map is an error on every system
            return np.empty(0, self.dtype)
        return np.memmap(self.path, dtype=self.dtype, mode="r", offset=_SIZE, shape=(self.count,))

    def verify(self) -> None:
        """Read all ids and compare their checksum. Raises TokenFileError if any bit has changed."""
        crc = 0
        try:
            with self.path.open("rb") as file:
                file.seek(_SIZE)
                while block := file.read(1 << 22):
                    crc = zlib.crc32(block, crc)
        except OSError as error:
            raise self._error(f"cannot be read ({error.strerror})") from None
        if crc != self._crc:
            raise self._error("has altered ids (their checksum differs)")

    def __len__(self) -> int:
        return self.count

    def _error(self, what: str) -> TokenFileError:
        return TokenFileError(f"{self.path}: {what}; {_FIX}")


def _header(dtype: np.dtype, count: int, crc: int, fingerprint: str) -> bytes:
    mark = fingerprint.encode("ascii")
    if len(mark) > 64:
        raise ValueError(f"a fingerprint has at most 64 characters, not {len(mark)}")
    head = _HEAD.pack(MAGIC, VERSION, dtype.itemsize, count, crc, mark)
    return head + zlib.crc32(head).to_bytes(4, "little")
