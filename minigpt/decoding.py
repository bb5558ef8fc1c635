"""A built model made ready to generate fast on a CPU: weights in bf16 or int8, linear layers and attention in C.

The residual stream, norms, biases and all sums stay fp32; keys and values are kept in bf16. Only the matrices
change, which are what a token has to read. Many positions at once (a prompt, a large batch) go through torch.

int8 is symmetric: a row of a matrix is its integers, -127 to 127, times one fp32 scale. A tied head gets integers
of its own, the embedding stays in bf16.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.errors import ConfigError
from minigpt.kernels import rows
from minigpt.model import GPT
from minigpt.model.cache import LayerCache
from minigpt.model.parts import Attention, Block, Rotary, fast_attention
from minigpt.runtime import DTYPES, make_runtime

PRECISIONS = ("fp32", "bf16", "int8")


@torch.no_grad()
def prepare_decoding(model: GPT, precision: str = "bf16") -> GPT:
    """Change the model in place, so that `generate` is fast; returns it. It can be neither trained nor saved after.

    prepare_decoding(GPT.from_pretrained("runs/my"), "int8")

    Args:
        model: on its device. Elsewhere than on a CPU, its weights are cast and that is all.
        precision: fp32, bf16, int8, or auto: bf16 on a CPU, where half the bytes take half the time; elsewhere the
            faster one.

    Raises:
        ConfigError: another precision, or int8 elsewhere than on a CPU.
        ValueError: a model that is prepared already.
    """
    if any(isinstance(block, RowBlock) for block in model.blocks):
        raise ValueError("the model is prepared already; load it again")
    device = model.embedding.weight.device
    if precision == "auto":
        precision = "bf16" if device.type == "cpu" else make_runtime(str(device)).precision
    if precision not in (PRECISIONS if device.type == "cpu" else DTYPES):
        raise ConfigError(f"precision: {precision} does not generate on {device.type}; use bf16 or fp32")
    model.eval()
    if device.type != "cpu":
        return model.to(DTYPES[precision])
    model.float()
    if precision != "fp32":
        model.embedding = Lookup(model.embedding.weight.bfloat16())
    if precision == "bf16" and model.config.tie_embeddings:
        model.head.weight = model.embedding.weight
    wide = torch.float32 if precision == "fp32" else DTYPES[make_runtime("cpu").precision]
    for module in [*model.modules()]:
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, RowLinear(child, precision, wide))
        if isinstance(module, Attention):
            module.kernel = row_attention
    model.blocks = nn.ModuleList(RowBlock(cast(Block, block), model) for block in model.blocks)
    return model


class RowLinear(nn.Module):
    """A linear layer [..., K] -> [..., N] from fp32 to fp32, whose weights are fewer bytes.

    Args:
        linear: what to take over.
        precision: fp32, bf16 or int8.
        wide: dtype of products of many vectors.
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
        self.wide = wide

    def forward(self, x: Tensor) -> Tensor:
        """Few vectors in C, many in torch."""
        usable = rows.usable(x, self.weight.dtype, x.numel() // self.weight.shape[1])
        if usable and (kernels := rows.library()):
            return kernels.linear(self.matrix(), x)
        out = F.linear(x.to(self.wide), self.weight.to(self.wide)).float()  # bf16 holds every int8
        if self.scale is not None:
            out = out * self.scale
        return out if self.bias is None else out + self.bias

    def matrix(self) -> rows.Matrix:
        """For C."""
        return rows.Matrix.of(self.weight, self.scale, self.bias)

    def reference(self, x: Tensor) -> Tensor:
        """The obvious form of `forward`."""
        return F.linear(x, rows.dequantised(self.weight, self.scale), self.bias)


class Lookup(nn.Embedding):
    """An embedding whose table [V, C] is bf16 and whose vectors are fp32."""

    def __init__(self, weight: Tensor):
        super().__init__(weight.shape[0], weight.shape[1], _weight=weight, _freeze=True)

    def forward(self, input: Tensor) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return super().forward(input).float()


def quantised(weight: Tensor) -> tuple[Tensor, Tensor]:
    """[N, K] -> int8 [N, K] and fp32 scales [N], so that a row's largest number becomes 127 or -127."""
    scale = weight.float().abs().amax(1).clamp(min=1e-30) / 127
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def row_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """`fast_attention`, one new position in C; keys and values may be bf16."""
    alike = key.stride() == value.stride() and key.stride()[2:] == (key.shape[3], 1)
    if (
        query.shape[2] == 1
        and visible is None
        and alike
        and rows.usable(query, key.dtype, 1)
        and (kernels := rows.library())
    ):
        return kernels.attend(query, key, value)
    return fast_attention(query, key.to(query.dtype), value.to(query.dtype), dropout, visible)


class RowBlock(nn.Module):
    """A block that takes one position of few sequences in one call of C, where some 40 of torch cost more than a small
    model's arithmetic; all else goes through the block as it was.

    Args:
        block: its linear layers being RowLinear.
        model: whose block it is.
    """

    def __init__(self, block: Block, model: GPT):
        super().__init__()
        self.block, self.config = block, model.config
        self.tables: Rotary | None = None
        if model.config.position == "rope":  # rounded as GPT.rotary does
            self.tables = model.cos.to(model.compute_dtype).float(), model.sin.to(model.compute_dtype).float()
        self._plan: rows.Block | None = None

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        kind = cast(RowLinear, self.block.attention.qkv).weight.dtype
        few = cache is not None and visible is None and x.shape[1] == 1 and rows.usable(x, kind, len(x))
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
            rows.ACTIVATIONS.index(config.activation),
            config.norm == "rmsnorm",
            config.norm_eps,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "RowBlock":
        self._plan = None  # it points into tensors that may move now
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plan": None}  # a copy has tensors of its own
