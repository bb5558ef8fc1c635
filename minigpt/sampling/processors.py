"""One function for each way to change logits; each is pure and knows nothing of the others."""

import torch
from torch import Tensor


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the k largest logits of each row [..., V]; the others become -inf. 0, or k >= V, keeps all."""
    if k == 0 or k >= logits.shape[-1]:
        return logits
    smallest_kept = logits.topk(k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < smallest_kept, float("-inf"))


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest likeliest tokens whose probabilities sum to at least p (Holtzman et al., 2020).

    top_p(log([0.5, 0.3, 0.2]), 0.6) keeps the first two: 0.5 < 0.6 <= 0.5 + 0.3.
    """
    if p >= 1.0:
        return logits
    ordered, index = logits.sort(dim=-1, descending=True, stable=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)  # probability of all likelier tokens
    dropped = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= p)
    return logits.masked_fill(dropped, float("-inf"))
