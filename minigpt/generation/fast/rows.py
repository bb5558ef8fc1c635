"""Decoding kernels in C (rows.c), compiled by the system's compiler at first use; torch's own ops where that fails.

torch reads a matrix for one vector at a third of memory's speed on a CPU; these read it at nearly all of it. They use
torch's OpenMP threads: the library is linked against none, and finds the one that torch has loaded.

What is compiled stays in the cache directory, in kernels/KEY.so, where KEY is a hash of source, flags and processor. A
library is code, so it is only loaded if nobody else can have written it: it and its folder belong to this user, no one
else may write there, and its bytes have the sha256 that stands in kernels.json, outside of the folder. Else it is
compiled again, in a private folder: where the cache cannot have one, in one that is deleted once the library is loaded.
Before a library is used its results are compared with torch's.
"""

import contextlib
import ctypes
import hashlib
import itertools
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.download import cache_root
from minigpt.files import beside, file_sha256, only_ours, parse_json, private_folder, write_bytes

SOURCE = Path(__file__).with_name("rows.c")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FEW = {
    (torch.float32, torch.float32): 15,
    (torch.bfloat16, torch.bfloat16): 6,
    (torch.bfloat16, torch.float32): 16,
    (torch.int8, torch.bfloat16): 24,
    (torch.int8, torch.float32): 32,
}
"""Most vectors for which this is faster than torch, by the weights' dtype and the one that torch multiplies fast here
(docs/LOG.md); rows.c has room for 32."""

_POINTER, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_int
_ALWAYS = "-O3 -std=gnu11 -fPIC -shared -fassociative-math -fno-signed-zeros -fno-trapping-math -fno-math-errno".split()
_LINK = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else ["-nodefaultlibs"]
_OPENMP = ["-Xclang", "-fopenmp"] if sys.platform == "darwin" else ["-fopenmp"]
_CHOICES = [*itertools.product((_OPENMP, []), (["-march=native"], []))]
"""Flags to try in turn: not every compiler knows all."""


class KernelError(Exception):
    """The kernels cannot be had here; never leaves this module."""


class Matrix(ctypes.Structure):
    """A linear layer: weight [N, K] of any kind, scale [N] of int8 rows, bias [N]."""

    _fields_ = [(name, _POINTER) for name in ("weight", "scale", "bias")] + [
        (name, _NUMBER) for name in ("rows", "columns", "kind")
    ]

    tensors: tuple[Tensor, Tensor | None, Tensor | None]

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> "Matrix":
        """Points into the tensors, and keeps them."""
        kind = weight.dtype
        made = cls(address(weight, kind), address(scale), address(bias), *weight.shape, KINDS[kind])
        made.tensors = weight, scale, bias
        return made


class Norm(ctypes.Structure):
    """A norm's weight and bias [size]; no weight: no norm."""

    _fields_ = [(name, _POINTER) for name in ("weight", "bias")]


class Block(ctypes.Structure):
    """A block of the model."""

    _fields_ = [
        *((name, Matrix) for name in ("qkv", "out", "up", "down")),
        *((name, Norm) for name in ("norm1", "norm2", "q_norm", "k_norm")),
        *((name, _POINTER) for name in ("cos", "sin")),
        *((name, _NUMBER) for name in ("heads", "groups", "head_size", "activation", "rms")),
        ("eps", ctypes.c_float),
    ]


class Cache(ctypes.Structure):
    """One layer's keys and values [B, KV, S, D]."""

    _fields_ = [(name, _POINTER) for name in ("keys", "values")] + [
        (name, _NUMBER) for name in ("kind", "batch_step", "head_step")
    ]

    @classmethod
    def of(cls, keys: Tensor, values: Tensor) -> "Cache":
        """Of two alike, whose rows of D lie one after another."""
        return cls(keys.data_ptr(), values.data_ptr(), KINDS[keys.dtype], *keys.stride()[:2])


def address(tensor: Tensor | None, kind: torch.dtype = torch.float32) -> int | None:
    """Where its numbers begin. Raises TypeError for a tensor that C would misread."""
    if tensor is None:
        return None
    if tensor.dtype != kind or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TypeError(f"a contiguous {kind} tensor on the CPU is needed, not {tensor.dtype} on {tensor.device}")
    return tensor.data_ptr()


def usable(x: Tensor) -> bool:
    """Whether C can take x: some fp32 numbers, on the CPU, with no gradient to follow."""
    followed = x.requires_grad and torch.is_grad_enabled()
    return x.numel() > 0 and x.dtype == torch.float32 and x.device.type == "cpu" and not followed


class Kernels:
    """A library of rows.c, loaded. All tensors are on the CPU. Raises MemoryError; ValueError for too many vectors."""

    def __init__(self, path: Path):
        calls = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        self._linear, self._attend, self._step = calls.linear, calls.attend, calls.step
        self._linear.argtypes = [_POINTER] * 3 + [_NUMBER, _THREADS]
        self._attend.argtypes = [_POINTER] * 3 + [_NUMBER] * 6 + [_THREADS]
        self._step.argtypes = [_POINTER] * 3 + [_NUMBER] * 2 + [_THREADS]

    def linear(self, matrix: Matrix, x: Tensor) -> Tensor:
        """fp32 [..., K] -> [..., N], at most 32 vectors."""
        x, out = x.contiguous(), x.new_empty((*x.shape[:-1], matrix.rows))
        count = x.numel() // matrix.columns
        _done(self._linear(ctypes.byref(matrix), x.data_ptr(), out.data_ptr(), count, torch.get_num_threads()))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Of one new position: fp32 [B, H, 1, D], fp32 or bf16 [B, KV, S, D] twice -> [B, H, 1, D]."""
        query, out = query.contiguous(), query.new_empty(query.shape)
        batch, heads, _, size = query.shape
        shape = (batch, heads, key.shape[1], key.shape[2], size, heads * size)
        cache = ctypes.byref(Cache.of(key, value))
        _done(self._attend(query.data_ptr(), cache, out.data_ptr(), *shape, torch.get_num_threads()))
        return out

    def step(self, block: Block, x: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """One position of each sequence through a block: fp32 [B, 1, C] -> [B, 1, C]; stores its key and value."""
        out = x.clone(memory_format=torch.contiguous_format)
        cache = ctypes.byref(Cache.of(keys, values))
        _done(self._step(ctypes.byref(block), out.data_ptr(), cache, len(x), position, torch.get_num_threads()))
        return out

    def check(self) -> None:
        """Compare with torch's results. Raises KernelError."""
        generator = torch.Generator().manual_seed(0)
        x, bias = torch.randn(5, 67, generator=generator), torch.randn(9, generator=generator)
        scale = torch.rand(9, generator=generator) + 0.01
        query = torch.randn(2, 4, 1, 17, generator=generator)
        cache = torch.randn(2, 2, 2, 7, 17, generator=generator)
        for dtype in KINDS:
            weight = (torch.randn(9, 67, generator=generator) * 30).to(dtype)
            factor = scale if dtype == torch.int8 else None
            made = self.linear(Matrix.of(weight, factor, bias), x)
            pairs = [(made, F.linear(x, dequantised(weight, factor), bias))]
            if dtype != torch.int8:
                key, value = cache.to(dtype)[:, :, :, :5].unbind(0)
                right = F.scaled_dot_product_attention(query, key.float(), value.float(), enable_gqa=True)
                pairs.append((self.attend(query, key, value), right))
            if not all((ours - theirs).abs().max() <= 1e-3 * theirs.abs().max() for ours, theirs in pairs):
                raise KernelError(f"the {dtype} kernels compute wrongly here")


def _done(failed: int) -> None:
    if failed:
        raise ValueError("more than 32 vectors") if failed & 2 else MemoryError("no memory for a step of decoding")


def dequantised(weight: Tensor, scale: Tensor | None) -> Tensor:
    """The fp32 matrix that [N, K] weights, and the scales [N] of their rows, stand for."""
    return weight.float() if scale is None else weight.float() * scale[:, None]


@cache
def library() -> Kernels | None:
    """The kernels, compiled if need be; None, and one warning, where they cannot be had."""
    try:
        return _load()
    except (KernelError, OSError) as error:
        warnings.warn(f"decoding by torch's own ops, which is slower: {error}", stacklevel=2)
        return None


def _load() -> Kernels:
    """Find or make a library that loads and computes rightly. Raises KernelError, OSError."""
    source, folder = SOURCE.read_bytes(), cache_root() / "kernels"
    reason: Exception = KernelError("nothing was tried")
    for openmp, native in _CHOICES:
        flags = [*_ALWAYS, *openmp, *native]
        key = hashlib.sha256(b"\0".join([source, " ".join(flags).encode(), _processor()])).hexdigest()[:16]
        try:
            return _kept(folder, key) or _compiled(folder, key, [*flags, *_LINK])
        except (KernelError, OSError) as error:
            reason = error
            if _compiler() is None:
                break
    raise reason


def _processor() -> bytes:
    """What -march=native may depend on: a cache directory can be shared between machines."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        lines = facts.read_text(encoding="utf-8").splitlines()
        return "\n".join(
            sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))})
        ).encode()
    return f"{platform.machine()} {platform.processor()}".encode()


def _compiler() -> str | None:
    """The system's; none on Windows, whose libraries are built otherwise."""
    found = (shutil.which(name) for name in ("cc", "gcc", "clang") if sys.platform != "win32")
    return next((path for path in found if path), None)


def _kept(folder: Path, key: str) -> Kernels | None:
    """A library compiled earlier, if it is this user's own and its bytes are those that were written.

    Raises KernelError: it computes wrongly.
    """
    path = folder / f"{key}.so"
    with contextlib.suppress(OSError):
        if only_ours(folder) and only_ours(path) and file_sha256(path) == _hashes(folder).get(key):
            kernels = Kernels(path)
            kernels.check()
            return kernels
    return None


def _hashes(folder: Path) -> dict[str, Any]:
    """The sha256 of each library, by its key."""
    try:
        return dict(parse_json(folder.with_suffix(".json").read_bytes()))
    except (OSError, ValueError, TypeError):  # none yet, or damaged: compile again
        return {}


def _compiled(folder: Path, key: str, flags: list[str]) -> Kernels:
    """Compile, load and check a library, and keep it if the folder is private. Raises KernelError, OSError."""
    compiler = _compiler()
    if compiler is None:
        raise KernelError("no C compiler (cc, gcc or clang) is here")
    with _private(folder) as scratch:
        made = scratch / "rows.so"
        words = [compiler, *flags, "-o", str(made), str(SOURCE)]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(f"{compiler} failed: {(done.stderr.strip() or 'no message').splitlines()[0]}")
        kernels = Kernels(made)
        kernels.check()
        if scratch.parent == folder:
            made.chmod(0o700)
            hashes = _hashes(folder) | {key: file_sha256(made)}
            write_bytes(folder.with_suffix(".json"), (json.dumps(hashes, indent=1) + "\n").encode())
            made.replace(folder / f"{key}.so")
    return kernels


@contextlib.contextmanager
def _private(folder: Path) -> Iterator[Path]:
    """A folder that only this user can write, deleted at the end: in `folder`; elsewhere if that cannot be private."""
    try:
        private_folder(folder)
        scratch = beside(folder / "rows.so")
        scratch.mkdir(mode=0o700)
    except OSError as error:  # compiling again costs a second or two at each start, no more
        warnings.warn(f"compiled kernels are not kept: {folder}: {error.strerror}", stacklevel=2)
        scratch = Path(tempfile.mkdtemp(prefix="minigpt-"))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
