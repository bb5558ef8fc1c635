"""Change a built model so that it generates fast. On a CPU: weights in bf16, int8 or int4, and kernels in C.

The residual stream, norms, biases and all sums stay fp32; keys and values are kept in bf16. Only the matrices change,
since every token has to read all of them. Many positions at once (a prompt, a large batch) are computed by torch.

int8 and int4 are the formats of `weights.quantized`, so a quantised run keeps its integers. A tied head gets its own
integers; the embedding stays in bf16.

int4 uses torch's kernel, called once per layer. One matrix takes 0.6 of int8's time, but int8 runs a whole block in one
call of C. On one core a token took with int4 and int8: 1.7 and 0.4 ms at width 128, 4.9 and 2.4 at 384, 8.3 and 10.8 at
1536 (bf16: 0.4, 3.8 and 21.6). So int4 is good for wide models, and where memory is short: it needs half as much.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import ConfigError, first_line
from minigpt.generation.fast import rows
from minigpt.generation.fast.cuda_graphs import Replay
from minigpt.model import GPT
from minigpt.model.activations import ACTIVATIONS
from minigpt.model.cache import LayerCache
from minigpt.model.heads import output_matrix
from minigpt.model.norms import NORMS
from minigpt.model.parts import Attention, Block, Rotary, fast_attention
from minigpt.runtime.device import DTYPES, make_runtime
from minigpt.weights.quantized import pack, packed_group, quantised, quantised4, unpack

PRECISIONS = ("fp32", "bf16", "int8", "int4")
WORTH = 48
"""Number of vectors from which converting bf16 weights saves time, if products in bf16 are slow (docs/LOG.md)."""


@torch.no_grad()
def prepare_decoding(model: GPT, precision: str = "bf16") -> GPT:
    """Change the model in place so that `generate` is fast, and return it. It can no longer be trained or saved.

    prepare_decoding(GPT.from_pretrained("runs/my"), "int8")

    Args:
        model: on its device. On devices other than a CPU its weights are cast; CUDA also uses CUDA graphs.
        precision: fp32, bf16, int8, int4 or auto. auto is bf16 on a CPU, where half the bytes take half the time, and
            the faster precision on other devices.

    Raises:
        ConfigError: unknown precision, int8 or int4 on another device than a CPU, or matrices that do not fit int4.
        ValueError: the model is prepared already, or has an adapter.
    """
    if isinstance(output_matrix(model.head), RowLinear | PackedLinear):
        raise ValueError("the model is prepared already; load it again")
    if any(isinstance(module, nn.Linear) and type(module) is not nn.Linear for module in model.modules()):
        raise ValueError("the model carries an adapter; merge it first: minigpt.training.finetune.merge(model)")
    device = model.embedding.weight.device
    if precision == "auto":
        precision = "bf16" if device.type == "cpu" else make_runtime(str(device)).precision
    if precision not in (PRECISIONS if device.type == "cpu" else DTYPES):
        raise ConfigError(f"precision: cannot generate in {precision} on {device.type}; use bf16 or fp32")
    if precision == "int4":
        _check_widths(model)
    model.eval()
    if device.type != "cpu":
        model.to(DTYPES[precision])
        model.use_attention("sdpa")  # training may have chosen another kernel; a CUDA graph's mask fits only this one
        if device.type == "cuda":
            model.reader = Replay()
        return model
    model.float()
    if precision != "fp32":
        model.embedding = Lookup(model.embedding.weight.bfloat16())
    if precision == "bf16" and model.config.tie_embeddings:
        output_matrix(model.head).weight = model.embedding.weight
    wide = torch.float32 if precision == "fp32" else DTYPES[make_runtime("cpu").precision]
    for path, module in [*model.named_modules()]:
        for name, child in module.named_children():
            if type(child) is nn.Linear and precision == "int4":
                setattr(module, name, _int4_linear(child, path.startswith("blocks."), wide))
            elif type(child) is nn.Linear:
                setattr(module, name, RowLinear(child, precision, wide))
        if isinstance(module, Attention):
            module.kernel = row_attention
    known = (ACTIVATIONS[model.config.activation].in_c, NORMS[model.config.norm].in_c)
    if precision != "int4" and None not in known:
        model.blocks = nn.ModuleList(RowBlock(cast(Block, block), model) for block in model.blocks)
    return model


class RowLinear(nn.Module):
    """A linear layer [..., K] -> [..., N], fp32 in and out, whose weights take fewer bytes.

    Args:
        linear: the layer to replace.
        precision: fp32, bf16 or int8.
        wide: dtype of products with many vectors.
    """

    def __init__(self, linear: nn.Linear, precision: str, wide: torch.dtype):
        super().__init__()
        weight, scale = linear.weight.detach(), None
        if precision == "int8":
            weight, scale = quantised(weight)
        elif weight.dtype != DTYPES[precision]:
            weight = weight.to(DTYPES[precision])
        self.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
        self.scale = None if scale is None else nn.Parameter(scale, requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.wide, self.few = wide, rows.FEW[weight.dtype, wide]

    def forward(self, x: Tensor) -> Tensor:
        """Multiply few vectors in C, many in torch."""
        count, kind = x.numel() // self.weight.shape[1], self.weight.dtype
        if count <= self.few and rows.usable(x) and (kernels := rows.library()):
            return kernels.linear(self.matrix(), x)
        # for few vectors, a slow product in bf16 is faster than converting the weights
        wide = torch.bfloat16 if kind == torch.bfloat16 and count < WORTH else self.wide
        out = F.linear(x.to(wide), self.weight.to(wide)).float()  # bf16 holds every int8 exactly
        if self.scale is not None:
            out = out * self.scale
        return out if self.bias is None else out + self.bias

    def matrix(self) -> rows.Matrix:
        """The layer as a struct for C."""
        return rows.Matrix.of(self.weight, self.scale, self.bias)

    def reference(self, x: Tensor) -> Tensor:
        """The readable form of `forward`."""
        return F.linear(x, rows.dequantised(self.weight, self.scale), self.bias)


class Lookup(nn.Embedding):
    """An embedding whose table [V, C] is bf16 and whose vectors are fp32."""

    def __init__(self, weight: Tensor):
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight, _freeze=True)

    def forward(self, input: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return super().forward(input).float()


class PackedLinear(nn.Module):
    """A linear layer [..., K] -> [..., N] in int4, fp32 in and out, by torch's kernel. Inputs are rounded to bf16.

    Args:
        linear: the layer to replace; N must be a multiple of 16.
        group: how many numbers of a row share a scale.
    """

    def __init__(self, linear: nn.Linear, group: int):
        super().__init__()
        numbers, scale = quantised4(linear.weight.detach(), group)
        # The kernel computes (n - 8) x scale + zero, and wants scale and zero as [K / group, N, 2].
        scales = torch.stack([scale, torch.zeros_like(scale)], dim=2).transpose(0, 1).bfloat16().contiguous()
        weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu((numbers + 8).int(), 1)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.scales = nn.Parameter(scales, requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        """Multiply any number of vectors."""
        flat = x.reshape(-1, x.shape[-1]).bfloat16()  # [..., K] -> [M, K]
        out = torch.ops.aten._weight_int4pack_mm_for_cpu(flat, self.weight, self.group, self.scales)
        out = out.float().view(*x.shape[:-1], -1)  # [M, N] -> [..., N]
        return out if self.bias is None else out + self.bias


def _check_widths(model: GPT) -> None:
    """Raise ConfigError if the rows of a matrix are not a multiple of int4's smallest group."""
    for name, module in model.named_modules():
        if type(module) is nn.Linear and module.in_features % 32:
            raise ConfigError(
                f"precision: int4 needs rows of a multiple of 32, those of {name} have {module.in_features}; use int8"
            )


def _int4_linear(linear: nn.Linear, in_block: bool, wide: torch.dtype) -> nn.Module:
    """Return the layer in int4. The group size is that of the saved layer, else 64, or 32 if 64 does not fit.

    A layer of the head that was not saved in int4 becomes int8. If torch has no int4 kernel here, or the kernel does
    not accept the shape, the layer is rounded to int4 but kept in fp32.
    """
    group = packed_group(linear.weight)
    if group is None and not in_block:
        return RowLinear(linear, "int8", wide)
    group = group or (64 if linear.in_features % 64 == 0 else 32)
    if linear.out_features % 16 == 0 and _int4_kernel():
        return PackedLinear(linear, group)
    linear.weight.data = unpack(pack(linear.weight.detach(), 4, group))
    return RowLinear(linear, "fp32", torch.float32)


@cache
def _int4_kernel() -> bool:
    """Whether torch has an int4 kernel here that computes correctly; one warning if not."""
    generator = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(64, 32), torch.randn(3, 64, generator=generator).bfloat16().float()
    linear.weight.data = torch.randn(32, 64, generator=generator)
    right = F.linear(x, unpack(pack(linear.weight.detach(), 4, 32)), linear.bias)
    try:
        made = PackedLinear(linear, 32)(x)
    except (AttributeError, RuntimeError) as error:  # includes NotImplementedError
        warnings.warn(f"int4 runs as fp32, which is not faster: {first_line(error)}", stacklevel=2)
        return False
    if (made - right).abs().max() > 0.02 * right.abs().max():
        warnings.warn("int4 runs as fp32, which is not faster: torch's kernel computes wrongly here", stacklevel=2)
        return False
    return True


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """Compute `fast_attention`; one new position is computed in C. Keys and values may be bf16."""
    alike = key.stride() == value.stride() and key.stride()[2:] == (key.shape[3], 1)
    if query.shape[2] == 1 and visible is None and alike and rows.usable(query) and (kernels := rows.library()):
        return kernels.attend(query, key, value)
    return fast_attention(query, key.to(query.dtype), value.to(query.dtype), dropout, visible)


class RowBlock(nn.Module):
    """A block that computes one position of few sequences in one call of C.

    About 40 calls of torch would take longer than a small model's arithmetic. All other input goes through the
    original block.

    Args:
        block: its linear layers are RowLinear.
        model: the model that the block belongs to.
    """

    def __init__(self, block: Block, model: GPT):
        super().__init__()
        self.block, self.config = block, model.config
        self.few = cast(RowLinear, block.attention.qkv).few
        self.tables: Rotary | None = None
        if model.config.position == "rope":  # rounded as in GPT.rotary
            self.tables = model.cos.to(model.compute_dtype).float(), model.sin.to(model.compute_dtype).float()
        self._plan: rows.Block | None = None

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        few = x.shape[1] == 1 and x.shape[0] <= self.few and visible is None and rows.usable(x)
        if few and cache is not None and (kernels := rows.library()):
            if self._plan is None:
                self._plan = self._make_plan()
            return kernels.step(self._plan, x, cache.keys, cache.values, cache.whole.length)
        return self.block(x, rotary, cache, visible)

    def _make_plan(self) -> rows.Block:
        attention, feed_forward, config = self.block.attention, self.block.feed_forward, self.config
        linears = (attention.qkv, attention.out, feed_forward.up, feed_forward.down)
        norms = (self.block.norm1, self.block.norm2, attention.q_norm, attention.k_norm)
        return rows.Block(
            *(cast(RowLinear, linear).matrix() for linear in linears),
            *(rows.Norm(rows.address(norm.weight), rows.address(norm.bias)) if norm else rows.Norm() for norm in norms),
            *(rows.address(table) for table in self.tables or (None, None)),
            config.num_heads,
            config.kv_heads,
            config.head_size,
            ACTIVATIONS[config.activation].in_c or 0,
            NORMS[config.norm].in_c or 0,
            config.norm_eps,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowBlock":
        self._plan = None  # it points into tensors that may move
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}  # a copy has its own tensors
