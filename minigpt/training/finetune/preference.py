"""Learning which of two answers is preferred, without a model of reward: DPO (Rafailov et al., 2023).

A batch of pairs is (pairs [P, 2, 2, T], zeros [P]): of each pair the chosen and the rejected row, of each row its
inputs and its targets; and which of the two is preferred, always the first. So the loop, which divides by the
targets that count, divides by pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.loss import IGNORE
from minigpt.training.finetune.row_batches import Row, stack


class Pair(NamedTuple):
    """Two answers to one prompt."""

    chosen: Row
    rejected: Row


def stack_pairs(pairs: Sequence[Pair], seq_len: int) -> tuple[Tensor, Tensor]:
    """Pairs [P, 2, 2, T] and zeros [P], both int64."""
    inputs, targets = stack([row for pair in pairs for row in pair], seq_len)  # [2 P, T] both
    both = torch.stack([inputs, targets], dim=1)  # [2 P, 2, T]
    return both.unflatten(0, (len(pairs), 2)), torch.zeros(len(pairs), dtype=torch.long)


def answer_log_probability(model: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """Log-probability [N] of each row's targets that count, given tokens [N, T]; nats, summed over the row."""
    counted = targets != IGNORE
    logits = model.head(model.hidden(tokens)[counted])[:, : model.config.vocab_size].float()
    each = -F.cross_entropy(logits, targets[counted], reduction="none")
    return each.new_zeros(len(tokens)).index_add(0, counted.nonzero()[:, 0], each)


class Preference:
    """-log sigmoid(beta x (gain of the chosen - gain of the rejected answer)), a `Loss` of the model.

    A gain is an answer's log-probability under the model less that under the reference, so the loss begins at log 2.

    Args:
        reference: what the model began as, on the same device; put in evaluation mode, without gradient.
        beta: the smaller, the further from the reference the model may go; 0.1 is usual.
    """

    def __init__(self, reference: GPT, beta: float):
        self.reference, self.beta = reference.eval().requires_grad_(False), beta

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of a batch of pairs, a scalar; smoothing is the share of pairs that may be the wrong way round."""
        inputs, answers = tokens.flatten(0, 1).unbind(1)  # [P, 2, 2, T] -> 2 x [2 P, T]
        with torch.no_grad():
            before = answer_log_probability(self.reference, inputs, answers)  # [2 P]
        gain = answer_log_probability(model, inputs, answers) - before
        chosen, rejected = gain.unflatten(0, (len(tokens), 2)).unbind(1)  # [P] each
        margin = self.beta * (chosen - rejected)
        losses = (1 - label_smoothing) * -F.logsigmoid(margin) + label_smoothing * -F.logsigmoid(-margin)
        return losses.sum() / valid
