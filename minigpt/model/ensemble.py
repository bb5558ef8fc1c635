"""Several models of one vocabulary as one: the mean of their probabilities."""

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from minigpt.model.gpt import GPT


def mean_probability(logits: Iterable[Tensor]) -> Tensor:
    """ln of the mean of the softmaxes of logits, each [..., V]: fp32 [..., V]. One of them is held at a time."""
    total, count = torch.tensor(-math.inf), 0
    for each in logits:
        total, count = torch.logaddexp(total.to(each.device), each.float().log_softmax(-1)), count + 1
    return total - math.log(count)


class Ensemble(nn.Module):
    """Ids [B, T] -> ln of the mean of the members' probabilities [B, T, V], which serves as logits.

    Args:
        members: of one vocabulary, on one device; they are put in evaluation mode.
    """

    def __init__(self, members: Sequence[GPT]):
        super().__init__()
        self.members = nn.ModuleList(members).eval()
        self.config = min((member.config for member in members), key=lambda config: config.max_seq_len)
        self.training = False  # so that nothing puts the members back into training

    def forward(self, tokens: Tensor) -> Tensor:
        """See the class."""
        return mean_probability(member(tokens) for member in self.members)
