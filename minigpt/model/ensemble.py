"""Combine several models with the same vocabulary into one, by the mean of their probabilities."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from minigpt.model.gpt import GPT


def mean_probability(logits: Iterable[Tensor]) -> Tensor:
    """ln of the mean of the softmaxes of logits, each [..., V]: fp32 [..., V]. Only one is in memory at a time."""
    total, count = torch.tensor(-math.inf), 0
    for each in logits:
        total, count = torch.logaddexp(total.to(each.device), each.float().log_softmax(-1)), count + 1
    return total - math.log(count)


class Ensemble(nn.Module):
    """Ids [B, T] -> ln of the mean of the members' probabilities [B, T, V], which can be used as logits.

    Args:
        members: models with the same vocabulary, on one device; they are put into evaluation mode.

    Raises ValueError if one has another vocabulary.
    """

    def __init__(self, members: Sequence[GPT]):
        super().__init__()
        if len({member.config.vocab_size for member in members}) > 1:
            raise ValueError("a member has another vocabulary")
        self.members = nn.ModuleList(members).eval()
        self.config = min((member.config for member in members), key=lambda config: config.max_seq_len)
        self.training = False  # so that no code puts the members back into training mode

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return mean_probability(member(tokens) for member in self.members)
