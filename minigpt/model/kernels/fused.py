"""Call C kernels (fused.c) that train on a CPU in fp32: norms, activations and attention, forward and backward.

Each kernel makes one pass over memory. The loss of a large vocabulary takes its exponentials from here too, in fp32
and in bf16. Where the kernels cannot run, torch's own operations do: on other devices, in other precisions, inside
torch.compile, without a C compiler, or with MINIGPT_FUSED=0. The readable forms are in `norms`, `activations`,
`reference` and `chunked_loss`.
"""

import ctypes
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from minigpt.compiled import KernelError, load

SOURCE = Path(__file__).with_name("fused.c")
RMS_NORM = 1
"""`in_c` of `norms.NORMS`. torch's layer norm is as fast as that of fused.c, which is only used for QK-norm."""
GELU, GELU_TANH, SWIGLU = 0, 1, 3
ACTIVATIONS = {GELU, GELU_TANH, SWIGLU}
"""The activations in fused.c, by `in_c` of `activations.ACTIVATIONS`. For the others torch is as fast."""
EXPONENTIALS = {torch.float32: "exponentials", torch.bfloat16: "exponentials_bf16"}
"""The function of fused.c for each dtype of logits."""
_POINTER, _NUMBER, _THREADS = ctypes.c_void_p, ctypes.c_long, ctypes.c_int


class Heads(ctypes.Structure):
    """The arguments of attention: the same struct as in fused.c."""

    _fields_ = [
        *((name, _POINTER) for name in ("qkv", "cos", "sin", "q_norm", "k_norm", "q_bias", "k_bias")),
        *((name, _NUMBER) for name in ("batch", "length", "heads", "groups", "head_size")),
        *((name, ctypes.c_int) for name in ("kind", "threads")),
        *((name, ctypes.c_float) for name in ("eps", "dropout")),
        ("key", ctypes.c_uint32),
    ]


class Kernels:
    """The loaded library of fused.c."""

    def __init__(self, path: Path):
        calls = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
        self.calls = calls
        calls.activate.argtypes = [_POINTER] * 3 + [_NUMBER] * 2 + [_THREADS] * 2
        calls.norm.argtypes = [_POINTER] * 5 + [_NUMBER] * 2 + [_THREADS, ctypes.c_float, _THREADS]
        calls.norm_back.argtypes = [_POINTER] * 7 + [_NUMBER] * 3 + [_THREADS] * 2
        calls.attend.argtypes = [_POINTER] * 3
        calls.attend_back.argtypes = [_POINTER] * 6
        self.exponentials = {dtype: getattr(calls, name) for dtype, name in EXPONENTIALS.items()}
        for call in self.exponentials.values():
            call.argtypes = [_POINTER] * 3 + [_NUMBER] * 2 + [_THREADS]
        for call in (calls.activate, calls.norm, calls.norm_back, *self.exponentials.values()):
            call.restype = None

    def check(self) -> None:
        """Compare results and gradients with torch's. Raises KernelError if they differ."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 37, 4 * 18, generator=generator, dtype=torch.float32)
        weight = torch.rand(72, generator=generator, dtype=torch.float32) + 0.5

        def plain(x: Tensor) -> Tensor:
            query, key, value = x.view(2, 37, 4, 18).transpose(1, 2).split([2, 1, 1], 1)
            mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
            return mixed.transpose(1, 2).flatten(2)

        pairs: list[tuple[str, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = [
            ("gelu", lambda x: _Activate.apply(x, GELU, 1, self), F.gelu),
            ("norm", lambda x: _Norm.apply(x, weight, None, 1e-5, 1, self), lambda x: F.rms_norm(x, (72,), weight)),
            ("attention", lambda x: attend(x, Shape(2, 1, 18), kernels=self), plain),
        ]
        for name, ours, theirs in pairs:
            found = []
            for form in (ours, theirs):
                into = x.clone().requires_grad_()
                out = form(into)
                (out * out.detach().cos()).sum().backward()  # scalar: for other shapes torch imports sympy
                found.append((out.detach(), cast(Tensor, into.grad)))
            if not all((a - b).abs().max() <= 1e-3 * b.abs().max() for a, b in zip(*found, strict=True)):
                raise KernelError(f"{name} computes wrongly here")
        for dtype in self.exponentials:
            powers = x.flatten(0, 1).to(dtype, copy=True)
            right = (powers.float() - powers.float().amax(-1, keepdim=True)).exp()
            _, sums = exponentials(powers, self)
            if not all(
                (a - b).abs().max() <= 1e-2 * b.max() for a, b in ((powers, right), (sums, right.sum(-1, True)))
            ):
                raise KernelError("exponentials are wrong here")


@cache
def library() -> Kernels | None:
    """Load the kernels, and compile them first if necessary. Returns None, with one warning, if that fails."""
    if os.environ.get("MINIGPT_FUSED") == "0":
        return None
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            torch.device("cpu"),
        ):
            return load(SOURCE, Kernels)
    except (KernelError, OSError) as error:
        warnings.warn(f"training by torch's own ops, which is slower: {error}", stacklevel=2)
        return None


def usable(*tensors: Tensor | None) -> bool:
    """Whether the C kernels accept these tensors: contiguous, fp32, on the CPU, outside torch.compile and autocast."""
    if torch.compiler.is_compiling() or torch.is_autocast_enabled("cpu"):
        return False
    fit = all(
        x is None or (x.dtype == torch.float32 and x.device.type == "cpu" and x.is_contiguous() and x.numel() > 0)
        for x in tensors
    )
    return fit and library() is not None


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


class _Activate(torch.autograd.Function):
    """[..., gates H] -> [..., H]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kind: int, gates: int, kernels: Kernels) -> Tensor:
        wide = x.shape[-1] // gates
        out, slope = x.new_empty(*x.shape[:-1], wide), torch.empty_like(x)
        ctx.save_for_backward(slope)
        into = x.data_ptr(), out.data_ptr(), slope.data_ptr()
        kernels.calls.activate(*into, out.numel() // wide, wide, kind, torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (slope,) = ctx.saved_tensors
        parts = slope.unflatten(-1, (-1, grad.shape[-1]))  # [..., gates, H]
        return (parts * grad.unsqueeze(-2)).flatten(-2), None, None, None


class _Norm(torch.autograd.Function):
    """[..., size] -> [..., size]."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: int, kernels: Kernels
    ) -> Tensor:
        size = x.shape[-1]
        rows = x.numel() // size
        out, kept = torch.empty_like(x), x.new_empty(rows, 2)
        ctx.save_for_backward(x, weight, bias, kept)
        ctx.rest = rows, size, kind
        ctx.kernels = kernels
        into = x.data_ptr(), weight.data_ptr(), _address(bias), out.data_ptr(), kept.data_ptr()
        kernels.calls.norm(*into, *ctx.rest, eps, torch.get_num_threads())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, kept = ctx.saved_tensors
        slope, grad, parts = torch.empty_like(x), grad.contiguous(), torch.get_num_threads()
        sums = x.new_zeros(2, parts, x.shape[-1])  # gradients of weight and bias
        ctx.kernels.calls.norm_back(
            *(tensor.data_ptr() for tensor in (x, weight, kept, grad, slope, sums[0])),
            None if bias is None else sums[1].data_ptr(),
            parts,
            *ctx.rest,
            parts,
        )
        weights, biases = sums.sum(1)
        return slope, weights, None if bias is None else biases, None, None, None


def exponentials(logits: Tensor, kernels: Kernels) -> tuple[Tensor, Tensor]:
    """Compute `chunked_loss.loss_terms` of contiguous logits [n, V] in fp32 or bf16 on the CPU."""
    largest, sums = torch.empty(2, len(logits), 1, dtype=torch.float32, device="cpu")
    into = logits.data_ptr(), largest.data_ptr(), sums.data_ptr()
    kernels.exponentials[logits.dtype](*into, *logits.shape, torch.get_num_threads())
    return largest, sums


class Shape(NamedTuple):
    """The number of query heads, the number of key/value heads, the head size; kind (in_c) and eps of the QK-norm."""

    heads: int
    groups: int
    head_size: int
    kind: int = 0
    eps: float = 0.0


class _Attend(torch.autograd.Function):
    """[B, T, (heads + 2 groups) D] -> [B, T, heads D]."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        q_norm: Tensor | None,
        k_norm: Tensor | None,
        q_bias: Tensor | None,
        k_bias: Tensor | None,
        cos: Tensor | None,
        sin: Tensor | None,
        shape: Shape,
        dropout: float,
        kernels: Kernels,
    ) -> Tensor:
        batch, length, _ = qkv.shape
        key = int(torch.randint(2**31 - 1, ())) if dropout else 0
        out = qkv.new_empty(batch, length, shape.heads * shape.head_size)
        sums = qkv.new_empty(batch, shape.heads, length)
        parts = (qkv, cos, sin, q_norm, k_norm, q_bias, k_bias)
        sizes = batch, length, *shape[:3], shape.kind, torch.get_num_threads()
        ctx.rest = *sizes, shape.eps, dropout, key
        ctx.kernels = kernels
        ctx.save_for_backward(*parts, out, sums)
        heads = Heads(*map(_address, parts), *ctx.rest)
        _done(kernels.calls.attend(ctypes.byref(heads), out.data_ptr(), sums.data_ptr()))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        *parts, out, sums = ctx.saved_tensors
        qkv, _, _, q_norm, _, q_bias, k_bias = parts
        heads = Heads(*map(_address, parts), *ctx.rest)  # activation checkpointing may have moved tensors
        slope, grad = torch.empty_like(qkv), grad.contiguous()
        norms = qkv.new_zeros(heads.batch * heads.groups, 4, heads.head_size)
        into = (tensor.data_ptr() for tensor in (out, sums, grad, slope, norms))
        _done(ctx.kernels.calls.attend_back(ctypes.byref(heads), *into))
        q_weight, q_shift, k_weight, k_shift = norms.sum(0) if q_norm is not None else [None] * 4
        shifts = (q_shift if q_bias is not None else None, k_shift if k_bias is not None else None)
        return slope, q_weight, k_weight, *shifts, None, None, None, None, None


def _done(failed: int) -> None:
    if failed:
        raise MemoryError("no memory for attention")


def activate(x: Tensor, kind: int, gates: int) -> Tensor:
    """Apply one of `ACTIVATIONS`: [..., gates H] -> [..., H]. `usable` must be true."""
    return cast(Tensor, _Activate.apply(x, kind, gates, library()))


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: int) -> Tensor:
    """Apply layer norm (kind 0) or RMS norm (1) over the last axis. `usable` must be true."""
    return cast(Tensor, _Norm.apply(x, weight, bias, eps, kind, library()))


def attend(
    qkv: Tensor,
    shape: Shape,
    norms: tuple[Tensor | None, ...] = (None, None, None, None),
    rotary: tuple[Tensor | None, Tensor | None] = (None, None),
    dropout: float = 0.0,
    kernels: Kernels | None = None,
) -> Tensor:
    """Compute causal attention, QK-norm and rotary positions: [B, T, (heads + 2 groups) D] -> [B, T, heads D].

    Args:
        qkv: queries, keys and values, as computed by one linear layer; `usable` must be true.
        shape: how many heads they have, and of which size.
        norms: the weights of the norms of queries and of keys, then their biases.
        rotary: cosines and sines [T, D].
        dropout: share of the attention weights that become zero.
        kernels: the library (default: `library()`).
    """
    return cast(Tensor, _Attend.apply(qkv, *norms, *rotary, shape, dropout, kernels or library()))
