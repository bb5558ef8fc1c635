"""Learn which of two answers is preferred, without a reward model: DPO (Rafailov et al., 2023).

A batch is (pairs [P, 2, 2, T], zeros [P]). Each pair has a chosen and a rejected row; each row has inputs and targets.
The zeros are the batch's targets: the preferred row of each pair is always row 0. The loop divides a loss by the number
of targets, so here it divides by the number of pairs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.loss import IGNORE
from minigpt.training.finetune.row_batches import Row, fit, stack


class Pair(NamedTuple):
    """Two answers to one prompt."""

    chosen: Row
    rejected: Row


def fit_pair(chosen: Row, rejected: Row, capacity: int) -> Pair:
    """Two answers to one prompt, at most `capacity` tokens each. Both lose the same part of the prompt's beginning.

    DPO needs the same prompt for both: only then does the unknown constant of the prompt cancel in their difference.
    """
    longest = max(len(chosen.ids), len(rejected.ids))
    prompt = int(chosen.learned.argmax())
    cut = max(0, min(longest - capacity, prompt))
    return Pair(*(fit(Row(*(side[cut:] for side in row)), capacity) for row in (chosen, rejected)))


def stack_pairs(pairs: Sequence[Pair], seq_len: int) -> tuple[Tensor, Tensor]:
    """Pairs [P, 2, 2, T] and zeros [P], both int64."""
    inputs, targets = stack([row for pair in pairs for row in pair], seq_len)  # [2 P, T] both
    both = torch.stack([inputs, targets], dim=1)  # [2 P, 2, T]
    return both.unflatten(0, (len(pairs), 2)), torch.zeros(len(pairs), dtype=torch.long)


def answer_log_probability(model: GPT, tokens: Tensor, targets: Tensor) -> Tensor:
    """Log-probability [N] of the learned targets of each row, given tokens [N, T]; in nats, summed over the row."""
    counted = targets != IGNORE
    logits = model.head(model.hidden(tokens)[counted])[:, : model.config.vocab_size].float()
    each = -F.cross_entropy(logits, targets[counted], reduction="none")
    return each.new_zeros(len(tokens)).index_add(0, counted.nonzero()[:, 0], each)


class Preference:
    """-log sigmoid(beta x (gain of the chosen - gain of the rejected answer)), a `Loss` of the model.

    An answer's gain is its log-probability under the model minus that under the reference. Both models are equal at
    first, so the loss begins at log 2.

    Args:
        reference: the model before training, on the same device; it is put in evaluation mode and gets no gradient.
        beta: with a smaller beta the model may differ more from the reference; 0.1 is usual.
    """

    def __init__(self, reference: GPT, beta: float):
        self.reference, self.beta = reference.eval().requires_grad_(False), beta

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of a batch of pairs, a scalar; smoothing is the share of pairs that may be in the wrong order."""
        inputs, answers = tokens.flatten(0, 1).unbind(1)  # [P, 2, 2, T] -> 2 x [2 P, T]
        with torch.no_grad():
            before = answer_log_probability(self.reference, inputs, answers)  # [2 P]
        gain = answer_log_probability(model, inputs, answers) - before
        chosen, rejected = gain.unflatten(0, (len(tokens), 2)).unbind(1)  # [P] each
        margin = self.beta * (chosen - rejected)
        losses = (1 - label_smoothing) * -F.logsigmoid(margin) + label_smoothing * -F.logsigmoid(-margin)
        return losses.sum() / valid
