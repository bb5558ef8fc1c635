"""From logits to a token, as pure functions, always in this order: temperature, top-k, top-p, draw."""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig


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


def probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution [..., V] that is drawn from; temperature 0 is all on the largest logit."""
    logits = logits.float()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    return top_p(top_k(logits / config.temperature, config.top_k), config.top_p).softmax(-1)


def sample(logits: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row: [B, V] -> [B]. Row i draws from generators[i], so it does not depend on its neighbours."""
    if config.temperature == 0:
        return logits.argmax(-1)
    chances = probabilities(logits, config)
    return torch.cat([torch.multinomial(row, 1, generator=g) for row, g in zip(chances, generators, strict=True)])
