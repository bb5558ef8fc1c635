"""Call decoding kernels in C (rows.c), which the system's compiler compiles at first use.

If that fails, torch's own operations run instead. When torch multiplies a matrix by one vector on a CPU, it reads the
matrix at a third of the memory's speed; these kernels read it at nearly full speed. They use torch's OpenMP threads.
Before the library is used, its results are compared with torch's.
"""

import ctypes
import os
import warnings
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.compiled import KernelError, load

SOURCE = Path(__file__).with_name("rows.c")
KINDS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
FEW = {
    (torch.float32, torch.float32): 15,
    (torch.bfloat16, torch.bfloat16): 6,
    (torch.bfloat16, torch.float32): 16,
    (torch.int8, torch.bfloat16): 24,
    (torch.int8, torch.float32): 32,
}
"""(dtype of the weights, dtype in which torch multiplies fast here) -> largest number of vectors for which rows.c is
faster than torch (docs/LOG.md). rows.c takes at most 32."""

_POINTER, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


class Matrix(ctypes.Structure):
    """A linear layer: weight [N, K] of any dtype in `KINDS`, scale [N] of the rows if int8, bias [N]."""

    _fields_ = [(name, _POINTER) for name in ("weight", "scale", "bias")] + [
        (name, _NUMBER) for name in ("rows", "columns", "kind")
    ]

    tensors: tuple[Tensor, Tensor | None, Tensor | None]

    @classmethod
    def of(cls, weight: Tensor, scale: Tensor | None, bias: Tensor | None) -> "Matrix":
        """Make a matrix that points into the tensors and keeps them alive."""
        kind = weight.dtype
        made = cls(address(weight, kind), address(scale), address(bias), *weight.shape, KINDS[kind])
        made.tensors = weight, scale, bias
        return made


class Norm(ctypes.Structure):
    """A norm's weight and bias [size]. Without a weight there is no norm."""

    _fields_ = [(name, _POINTER) for name in ("weight", "bias")]


class Block(ctypes.Structure):
    """A block of the model, as in rows.c."""

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
        """Make one from two tensors with the same strides, whose rows of D numbers are contiguous."""
        return cls(keys.data_ptr(), values.data_ptr(), KINDS[keys.dtype], *keys.stride()[:2])


def address(tensor: Tensor | None, kind: torch.dtype = torch.float32) -> int | None:
    """The address of a tensor's first number. Raises TypeError for a tensor that C would misread."""
    if tensor is None:
        return None
    if tensor.dtype != kind or tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise TypeError(f"a contiguous {kind} tensor on the CPU is needed, not {tensor.dtype} on {tensor.device}")
    return tensor.data_ptr()


def usable(x: Tensor) -> bool:
    """Whether the C kernels accept x: fp32, on the CPU, not empty, no gradient needed."""
    followed = x.requires_grad and torch.is_grad_enabled()
    return x.numel() > 0 and x.dtype == torch.float32 and x.device.type == "cpu" and not followed


class Kernels:
    """The loaded library of rows.c. All tensors are on the CPU. Raises MemoryError; ValueError for too many vectors."""

    def __init__(self, path: Path):
        calls = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        self._linear, self._attend, self._step = calls.linear, calls.attend, calls.step
        self._linear.argtypes = [_POINTER] * 3 + [_NUMBER, _THREADS]
        self._attend.argtypes = [_POINTER] * 3 + [_NUMBER] * 6 + [_THREADS]
        self._step.argtypes = [_POINTER] * 3 + [_NUMBER] * 2 + [_THREADS]

    def linear(self, matrix: Matrix, x: Tensor) -> Tensor:
        """Multiply: fp32 [..., K] -> [..., N], for at most 32 vectors."""
        x, out = x.contiguous(), x.new_empty((*x.shape[:-1], matrix.rows))
        count = x.numel() // matrix.columns
        _done(self._linear(ctypes.byref(matrix), x.data_ptr(), out.data_ptr(), count, torch.get_num_threads()))
        return out

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Attention of one position: query fp32 [B, H, 1, D]; key, value fp32 or bf16 [B, KV, S, D] -> [B, H, 1, D]."""
        query, out = query.contiguous(), query.new_empty(query.shape)
        batch, heads, _, size = query.shape
        shape = (batch, heads, key.shape[1], key.shape[2], size, heads * size)
        cache = ctypes.byref(Cache.of(key, value))
        _done(self._attend(query.data_ptr(), cache, out.data_ptr(), *shape, torch.get_num_threads()))
        return out

    def step(self, block: Block, x: Tensor, keys: Tensor, values: Tensor, position: int) -> Tensor:
        """Compute a block for one position per sequence: fp32 [B, 1, C] -> [B, 1, C]. Stores its keys and values."""
        out = x.clone(memory_format=torch.contiguous_format)
        cache = ctypes.byref(Cache.of(keys, values))
        _done(self._step(ctypes.byref(block), out.data_ptr(), cache, x.shape[0], position, torch.get_num_threads()))
        return out

    def check(self) -> None:
        """Compare with torch's results. Raises KernelError if they differ."""
        generator = torch.Generator().manual_seed(0)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float32)

        x, bias, scale = random(5, 67), random(9), random(9).abs() + 0.01
        query, cache = random(2, 4, 1, 17), random(2, 2, 2, 7, 17)
        for dtype in KINDS:
            weight = (random(9, 67) * 30).to(dtype)
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
    """The fp32 matrix of weights [N, K] and the scales [N] of their rows."""
    return weight.float() if scale is None else weight.float() * scale[:, None]


@cache
def library() -> Kernels | None:
    """Load the kernels, and compile them first if necessary. Returns None, with one warning, if that fails."""
    try:  # the check compares with torch as it is by default
        with torch.inference_mode(False), torch.autocast("cpu", enabled=False), torch.device("cpu"):
            return load(SOURCE, Kernels)
    except (KernelError, OSError) as error:
        warnings.warn(f"decoding by torch's own ops, which is slower: {error}", stacklevel=2)
        return None
