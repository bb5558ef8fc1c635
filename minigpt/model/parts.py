"""Define the parts of a block: norms, rotary positions, attention, feed-forward.

Shapes: B batch, T time, C embed_dim, H heads, KV heads of keys and values, D head size.

One matrix makes queries, keys and values. Heads may be grouped. Rotary positions pair (i, i + D/2), the layout of
Hugging Face's models. The readable form of each fast path is in `reference.py`.
"""

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model import reference
from minigpt.model.activations import ACTIVATIONS
from minigpt.model.cache import LayerCache
from minigpt.model.kernels import fused
from minigpt.model.kernels.attention import fast_attention, tiles
from minigpt.model.kernels.dropout import drop
from minigpt.model.norms import NORMS

Rotary = tuple[Tensor, Tensor]
"""Cosines and sines of the positions: [T, D], or [B, 1, T, D] if each row has its own positions."""


class Norm(nn.Module):
    """One of `NORMS`, over the last axis; computed in fp32 under autocast."""

    def __init__(self, config: ModelConfig, size: int):
        super().__init__()
        kind = NORMS[config.norm]
        self.normalise, self.in_c, self.eps = kind.torch, kind.in_c, config.norm_eps
        self.fused = config.attention == "fused"
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size)) if config.bias and kind.has_bias else None

    def forward(self, x: Tensor) -> Tensor:
        """[..., size] -> [..., size]."""
        if self.fused and self.in_c == fused.RMS_NORM and fused.usable(x, self.weight):
            return fused.norm(x, self.weight, None, self.eps, fused.RMS_NORM)
        return self.normalise(x, self.weight, self.bias, self.eps)


def rotary_tables(length: int, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines [length, D] of the rotary angles. The second half of the columns repeats the first half."""
    if torch.get_default_device().type == "meta":  # only shapes matter; `arange` would import torch's compiler
        return torch.empty(length, head_size), torch.empty(length, head_size)
    frequencies = theta ** (-torch.arange(0, head_size, 2) / head_size)
    angles = (torch.arange(length)[:, None] * frequencies).repeat(1, 2)  # [T, D]
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate x [B, H, T, D] by angles given as cosines and sines [T, D]."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def blockwise_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """Compute `reference.attention` of a sequence in up to four parts, so that early queries skip later keys."""
    if visible is not None or query.shape[2] < key.shape[2]:
        return reference.attention(query, key, value, dropout, visible)
    parts = [(query[:, :, start:end], key[:, :, :end], value[:, :, :end]) for start, end in tiles(query.shape[2])]
    return torch.cat([reference.attention(*part, dropout) for part in parts], dim=2)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """Compute `fast_attention`. `Attention` calls this when the C kernel cannot do the whole layer."""
    return fast_attention(query, key, value, dropout, visible)


ATTENTION = {
    "reference": reference.attention,
    "blockwise": blockwise_attention,
    "sdpa": fast_attention,
    "fused": fused_attention,
}
"""Attention kernels by name. "fused" also computes norms and activations in C, on a CPU in fp32."""


class Attention(nn.Module):
    """Causal self-attention with grouped-query heads, optional QK-norm and rotary positions."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.num_heads, self.kv_heads, self.head_size = config.num_heads, config.kv_heads, config.head_size
        self.dropout, self.qkv_drops = config.drops("attention")[0], config.drops("qkv")
        width = config.num_heads * config.head_size
        self.qkv = nn.Linear(config.embed_dim, width + 2 * self.kv_heads * self.head_size, bias=config.bias)
        self.out = nn.Linear(width, config.embed_dim, bias=config.bias)
        self.q_norm = Norm(config, config.head_size) if config.qk_norm else None
        self.k_norm = Norm(config, config.head_size) if config.qk_norm else None
        self.kernel = ATTENTION["sdpa" if config.attention == "auto" else config.attention]

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]. With a cache, the T new positions also see the positions in the cache."""
        batch, length, _ = x.shape
        qkv = drop(self.qkv(x), self.qkv_drops, self.training)  # [B, T, (H + 2 KV) D]
        dropout = self.dropout if self.training else 0.0
        if self.kernel is fused_attention and cache is None and visible is None:
            mixed = self._fused(qkv, rotary, dropout)
            if mixed is not None:
                return self.out(mixed)
        qkv = qkv.view(batch, length, -1, self.head_size).transpose(1, 2)  # [B, H + 2 KV, T, D]
        query, key, value = qkv.split([self.num_heads, self.kv_heads, self.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotary is not None:
            query, key = rotate(query, *rotary), rotate(key, *rotary)
        if cache is not None:
            key, value = cache.append(key, value)  # [B, KV, S, D]
        mixed = self.kernel(query, key, value, dropout, visible)  # [B, H, T, D]
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))  # [B, T, H D] -> [B, T, C]

    def _fused(self, qkv: Tensor, rotary: Rotary | None, dropout: float) -> Tensor | None:
        """[B, T, (H + 2 KV) D] -> [B, T, H D], computed in C. None if the C kernel cannot do it."""
        norms = [norm for norm in (self.q_norm, self.k_norm) if norm is not None]
        weights = *(norm.weight for norm in norms), *(norm.bias for norm in norms)
        cos, sin = rotary or (None, None)
        if any(norm.in_c is None for norm in norms) or not fused.usable(qkv, *weights, cos, sin):
            return None
        if cos is not None and cos.dim() != 2:  # each row has its own positions
            return None
        kind, eps = (norms[0].in_c or 0, norms[0].eps) if norms else (0, 0.0)
        shape = fused.Shape(self.num_heads, self.kv_heads, self.head_size, kind, eps)
        return fused.attend(qkv, shape, weights or (None,) * 4, (cos, sin), dropout)


class FeedForward(nn.Module):
    """Two linear layers with one of `ACTIVATIONS` between them. A gated activation has a third layer for its gates."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        kind = ACTIVATIONS[config.activation]
        self.activate, self.in_c, self.gates = kind.torch, kind.in_c, config.gates
        self.fused = config.attention == "fused"
        self.up = nn.Linear(config.embed_dim, config.gates * config.hidden_dim, bias=config.bias)
        self.down = nn.Linear(config.hidden_dim, config.embed_dim, bias=config.bias)
        self.drops = config.drops("hidden")

    def forward(self, x: Tensor) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        wide = self.up(x)  # [B, T, gates H]
        if self.fused and self.in_c in fused.ACTIVATIONS and fused.usable(wide):
            hidden = fused.activate(wide, self.in_c, self.gates)
        else:
            hidden = self.activate(wide)  # [B, T, gates H] -> [B, T, H]
        return self.down(drop(hidden, self.drops, self.training))


class Block(nn.Module):
    """Pre-norm Transformer block: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.norm1, self.attention = Norm(config, config.embed_dim), Attention(config)
        self.norm2, self.feed_forward = Norm(config, config.embed_dim), FeedForward(config)
        self.drops = config.drops("block")

    def forward(
        self, x: Tensor, rotary: Rotary | None = None, cache: LayerCache | None = None, visible: Tensor | None = None
    ) -> Tensor:
        """[B, T, C] -> [B, T, C]."""
        x = x + drop(self.attention(self.norm1(x), rotary, cache, visible), self.drops, self.training)
        return x + drop(self.feed_forward(self.norm2(x)), self.drops, self.training)
