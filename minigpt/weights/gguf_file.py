"""Read and write GGUF files, the format of llama.cpp and related programs: settings, then tensors, little-endian.

    "GGUF", version 3, number of tensors, number of settings
    each setting:  name, type, value
    each tensor:   name, number of dimensions, sizes (row length first), kind of its numbers, place in the data
    data:          each tensor begins at a multiple of 32

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A count in a file is checked against the bytes
that the file has, so reading a hostile file takes no more memory than a small multiple of its size.
"""

import math
import mmap
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minigpt.errors import CheckpointError

MAGIC = b"GGUF"
VERSION = 3
ALIGNMENT = 32
BLOCK = 32
"""Number of neighbours in a row that share a scale in Q8_0 and Q4_0."""

Value = str | bool | int | float | list[str] | list[int] | list[float]


class Kind(NamedTuple):
    """How a tensor's numbers are stored: GGUF's code, numbers per block, and bytes per block."""

    code: int
    numbers: int
    bytes: int


KINDS = {
    "fp32": Kind(0, 1, 4),
    "fp16": Kind(1, 1, 2),
    "q4_0": Kind(2, BLOCK, 18),
    "q8_0": Kind(8, BLOCK, 34),
    "bf16": Kind(30, 1, 2),
}


def fits(shape: tuple[int, ...], kind: str) -> bool:
    """Whether a tensor of this shape can be stored in this kind: its rows must be whole blocks."""
    return shape[-1] % KINDS[kind].numbers == 0


def pack(tensor: Tensor, kind: str) -> bytes:
    """Convert a tensor to bytes. A block of Q8_0 or Q4_0 is a scale and 32 integers; Q4_0 puts two into each byte.

    Rounding is the same as in ggml. Q8_0: the scale is max / 127, halves are rounded away from zero. Q4_0: the scale
    makes the number with the largest absolute value -8.
    """
    values = tensor.detach().to("cpu", torch.float32).contiguous()
    if kind == "bf16":
        return values.bfloat16().view(torch.int16).numpy().tobytes()
    rows = values.numpy()
    if kind in ("fp32", "fp16"):
        return rows.astype("<f4" if kind == "fp32" else "<f2").tobytes()
    blocks = rows.reshape(-1, BLOCK)
    if kind == "q8_0":
        scale = np.abs(blocks).max(1, keepdims=True) / np.float32(127)
        parts = blocks * _inverse(scale)
        whole = np.trunc(np.abs(parts) + np.float32(0.5)) * np.sign(parts)
        stored = whole.astype(np.int8).view(np.uint8)
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(1)[:, None], 1)
        scale = largest / np.float32(-8)
        whole = np.trunc(blocks * _inverse(scale) + np.float32(8.5)).clip(0, 15).astype(np.uint8)
        stored = whole[:, : BLOCK // 2] | whole[:, BLOCK // 2 :] << 4
    return np.concatenate([scale.astype("<f2").view(np.uint8), stored], axis=1).tobytes()


def unpack(data: np.ndarray, kind: str) -> np.ndarray:
    """Convert a tensor's bytes to fp32 numbers (n,)."""
    if kind == "fp32":
        return data.view("<f4").astype(np.float32)
    if kind == "fp16":
        return data.view("<f2").astype(np.float32)
    if kind == "bf16":
        return (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    blocks = data.reshape(-1, KINDS[kind].bytes)
    scale = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    stored = blocks[:, 2:]
    if kind == "q8_0":
        whole = np.ascontiguousarray(stored).view(np.int8).astype(np.float32)
    else:
        whole = np.concatenate([stored & 15, stored >> 4], axis=1).astype(np.float32) - 8
    with np.errstate(invalid="ignore"):  # 0 x infinite scale: the caller checks for it
        return (whole * scale).reshape(-1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    return np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)


def write(path: Path, settings: Mapping[str, Value], tensors: Mapping[str, tuple[Tensor, str]]) -> None:
    """Write a file. `tensors`: name -> (tensor, kind). Raises OSError."""
    with path.open("wb") as file:
        file.write(MAGIC + struct.pack("<IQQ", VERSION, len(tensors), len(settings)))
        for name, value in settings.items():
            file.write(_text(name) + _setting(value))
        place = 0
        for name, (tensor, kind) in tensors.items():
            sizes = tuple(reversed(tensor.shape))
            code, numbers, size = KINDS[kind]
            file.write(_text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, code, place))
            place += _padded(tensor.numel() // numbers * size)
        _pad(file)
        for tensor, kind in tensors.values():
            file.write(pack(tensor, kind))
            _pad(file)


def _text(text: str) -> bytes:
    spelled = text.encode()
    return struct.pack("<Q", len(spelled)) + spelled


def _setting(value: Value) -> bytes:
    """The bytes of a setting's type and value."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    code, spell = _LISTS[type(value[0]) if value else str]
    return struct.pack("<IIQ", 9, code, len(value)) + b"".join(map(spell, value))


_LISTS: dict[type, tuple[int, Callable[[Any], bytes]]] = {
    int: (5, struct.Struct("<i").pack),
    float: (6, struct.Struct("<f").pack),
    str: (8, _text),
}


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _pad(file: BinaryIO) -> None:
    file.write(bytes(_padded(file.tell()) - file.tell()))


class Stored(NamedTuple):
    """A tensor in a file: its shape in torch's order, its kind, and a function that loads it in fp32."""

    shape: tuple[int, ...]
    kind: str
    load: Callable[[], Tensor]


class GGUF(NamedTuple):
    """The result of `read`. Numbers in settings are Python numbers; lists of numbers are arrays."""

    settings: dict[str, Any]
    tensors: dict[str, Stored]


def read(path: Path) -> GGUF:
    """Read the settings of a file and the list of its tensors. Each tensor is loaded when its `load` is called.

    Raises:
        CheckpointError: not a GGUF file, damaged, or a kind of numbers that is not in KINDS.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        if file.read(4) != MAGIC:
            raise CheckpointError(f"{path}: is not a GGUF file")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        return _read(_Cursor(data))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
_STRING, _ARRAY = 8, 9
_DAMAGED = "download or export it again"


class _Cursor:
    """Reads a file from its beginning. Raises CheckpointError if the file ends too early."""

    def __init__(self, data: mmap.mmap):
        self.data, self.place = data, len(MAGIC)

    def take(self, size: int) -> int:
        """Move forward by `size` bytes; returns where they begin."""
        start = self.place
        if size > len(self.data) - start:
            raise CheckpointError(f"is damaged: it ends too early; {_DAMAGED}")
        self.place += size
        return start

    def numbers(self, dtype: str, count: int = 1) -> np.ndarray:
        size = np.dtype(dtype).itemsize
        return np.frombuffer(self.data, dtype, count, self.take(size * count)) if count else np.zeros(0, dtype)

    def number(self, dtype: str) -> int:
        return int(self.numbers(dtype)[0])

    def text(self) -> str:
        size = self.number("<u8")
        start = self.take(size)
        try:
            return self.data[start : start + size].decode()
        except UnicodeDecodeError:
            raise CheckpointError(f"is damaged: it holds text that is not UTF-8; {_DAMAGED}") from None

    def value(self) -> Any:
        """Read a setting's value. An array of arrays is refused, since no model's file has one."""
        code = self.number("<u4")
        if code == _STRING:
            return self.text()
        if code == _ARRAY:
            each, count = self.number("<u4"), self.number("<u8")
            if each == _STRING:
                return [self.text() for _ in range(count)]
            return self.numbers(_dtype(each), count).copy()
        dtype = _dtype(code)
        found = self.numbers(dtype)[0]
        return float(str(found)) if dtype == "<f4" else found.item()  # a float32 of 1e-6 is read as 1e-6


def _dtype(code: int) -> str:
    if code not in _NUMBERS:
        raise CheckpointError(f"is damaged: no setting has the type {code}; {_DAMAGED}")
    return _NUMBERS[code]


def _read(cursor: _Cursor) -> GGUF:
    version = cursor.number("<u4")
    if version not in (2, VERSION):
        raise CheckpointError(f"is GGUF version {version}; minigpt reads versions 2 and 3, little-endian")
    tensors, count = cursor.number("<u8"), cursor.number("<u8")
    settings: dict[str, Any] = {}
    for _ in range(count):
        name = cursor.text()
        if name in settings:
            raise CheckpointError(f"is damaged: it has two settings {name[:60]!r}; {_DAMAGED}")
        settings[name] = cursor.value()
    found: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
    for _ in range(tensors):
        name = cursor.text()
        if name in found:
            raise CheckpointError(f"is damaged: it has two tensors {name[:60]!r}; {_DAMAGED}")
        found[name] = _described(cursor, name)
    step = settings.get("general.alignment", ALIGNMENT)
    if type(step) is not int or not 0 < step <= 1 << 20:
        raise CheckpointError(f"is damaged: general.alignment is {str(step)[:60]}; {_DAMAGED}")
    begin = -(-cursor.place // step) * step
    end = 0  # end of the tensor before. Tensors must not overlap, or a small file could become a large model
    for name, (_, _, place, size) in sorted(found.items(), key=lambda item: item[1][2]):
        if place < end or size > len(cursor.data) - begin - place:
            raise CheckpointError(f"is damaged: {name[:60]} overlaps another tensor or the file's end; {_DAMAGED}")
        end = place + size
    return GGUF(settings, {name: _stored(cursor.data, begin, *parts) for name, parts in found.items()})


def _described(cursor: _Cursor, name: str) -> tuple[tuple[int, ...], str, int, int]:
    """Read the description of the next tensor: (shape, kind, place in the data, bytes)."""
    dimensions = cursor.number("<u4")
    if not 0 < dimensions <= 4:
        raise CheckpointError(f"is damaged: {name[:60]} has {dimensions} dimensions; {_DAMAGED}")
    shape = tuple(cursor.numbers("<u8", dimensions).tolist()[::-1])
    code = cursor.number("<u4")
    kind = next((name for name, kind in KINDS.items() if kind.code == code), None)
    if kind is None:
        raise CheckpointError(
            f"{name[:60]} has a kind of numbers that minigpt does not read (code {code}); "
            f"get the model in one of {', '.join(KINDS)}"
        )
    if not math.prod(shape) or not fits(shape, kind):
        raise CheckpointError(f"is damaged: {name[:60]} cannot be {shape} in {kind}; {_DAMAGED}")
    return shape, kind, cursor.number("<u8"), math.prod(shape) // KINDS[kind].numbers * KINDS[kind].bytes


def _stored(data: mmap.mmap, begin: int, shape: tuple[int, ...], kind: str, place: int, size: int) -> Stored:
    def load() -> Tensor:
        numbers = unpack(np.frombuffer(data, np.uint8, size, begin + place), kind)
        return torch.from_numpy(numbers).view(shape)

    return Stored(shape, kind, load)
