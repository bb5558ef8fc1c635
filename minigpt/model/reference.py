"""Compute each part of the model in a slow, readable form. Read this first: tests compare `parts.py` with it."""

import math

import torch
from torch import Tensor

from minigpt.model.kernels.dropout import dropout as drop


def attention(query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None) -> Tensor:
    """Causal scaled dot-product attention (Vaswani et al., 2017, section 3.2.1).

    Args:
        query: [B, H, T, D], the last T positions of the sequence.
        key, value: [B, KV, S, D] with S >= T; each of the KV heads serves H/KV query heads.
        dropout: probability of dropping an attention weight.
        visible: [B, 1, T, S], which keys each query sees. Default: query i is at position S - T + i and sees the keys
            up to its own position.

    Returns:
        [B, H, T, D]: for each position the mean of the values it sees, weighted by softmax(q k / sqrt(D)).
    """
    heads, length = query.shape[1:3]
    total = key.shape[2]
    key = key.repeat_interleave(heads // key.shape[1], dim=1)  # [B, KV, S, D] -> [B, H, S, D]
    value = value.repeat_interleave(heads // value.shape[1], dim=1)
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])  # [B, H, T, S]
    if visible is None:
        visible = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    weights = drop(weights, dropout, dropout > 0)
    return weights @ value  # [B, H, T, S] @ [B, H, S, D] -> [B, H, T, D]


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Normalise the last axis to mean 0 and variance 1, then scale and shift (Ba et al., 2016)."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt(centred.pow(2).mean(-1, keepdim=True) + eps) * weight
    return scaled if bias is None else scaled + bias


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalise the last axis to root mean square 1, then scale (Zhang and Sennrich, 2019)."""
    return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Rotate one vector [D] by its position (Su et al., 2021): pair (i, i + D/2) by position / theta^(2i/D)."""
    half = x.shape[-1] // 2
    out = x.clone()
    for i in range(half):
        angle = position / theta ** (2 * i / x.shape[-1])
        first, second = x[i].item(), x[i + half].item()
        out[i] = first * math.cos(angle) - second * math.sin(angle)
        out[i + half] = second * math.cos(angle) + first * math.sin(angle)
    return out
