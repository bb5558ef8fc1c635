"""The order in which logits become a token: what is allowed (`adjust`), then how bold (`probabilities`), then the draw.

adjust: see there. probabilities: temperature, top-k, top-p.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.sampling.processors import top_k, top_p


@dataclass(frozen=True)
class Rules:
    """What the settings say in words, in a tokenizer's ids."""


NO_RULES = Rules()


def adjust(logits: Tensor, history: Sequence[Tensor], new: int, config: GenerationConfig, rules: Rules) -> Tensor:
    """Logits [B, V] after penalties and bans.

    Args:
        history: row i's tokens so far, prompt first.
        new: how many of them, at the end, were generated.
    """
    return logits


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
