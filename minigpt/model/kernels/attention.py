"""Compute causal attention without work for keys that no query sees. Readable form: `model.reference.attention`."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def fast_attention(
    query: Tensor, key: Tensor, value: Tensor, dropout: float = 0.0, visible: Tensor | None = None
) -> Tensor:
    """Compute `reference.attention` with torch's fused kernel."""
    length, total = query.shape[2], key.shape[2]
    causal = visible is None and length == total > 1
    if visible is None and 1 < length < total:  # after a cached prefix, is_causal would mask as if there were no prefix
        visible = torch.ones(length, total, dtype=torch.bool, device=query.device).tril(total - length)
    return F.scaled_dot_product_attention(
        query, key, value, visible, dropout, is_causal=causal, enable_gqa=query.shape[1] != key.shape[1]
    )


def tiles(length: int) -> list[tuple[int, int]]:
    """List (start, end) of the queries in each part of blockwise attention: a quarter of all queries, at least 128."""
    size = max(128, math.ceil(length / 4))
    return [(start, min(start + size, length)) for start in range(0, length, size)]


def scored(length: int) -> int:
    """Count the scores that blockwise attention computes: with 4 parts 5/8 of all pairs, with 2 parts 3/4."""
    return sum(end * (end - start) for start, end in tiles(length))
