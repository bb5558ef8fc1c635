"""Compute the distillation loss: learn from the probabilities of teachers and from the data (Hinton et al., 2015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.ensemble import mean_probability
from minigpt.model.loss import IGNORE, next_token_loss


class Distillation:
    """(1 - weight) x next-token loss + weight x temperature^2 x KL(teachers || model), a `Loss` of the model.

    The teachers' distribution is the mean of their probabilities. All probabilities are of logits / temperature; the
    factor temperature^2 keeps the size of the gradient. Only the N positions that have a target are counted, and
    logits are computed only there: three times N x V floats in memory, for any number of teachers.

    Args:
        teachers: with the model's vocabulary, on the same device; they are put in evaluation mode and get no gradient.
        weight: weight of the teachers, above 0; with 1 the data do not count.
        temperature: above 1 gives more weight to tokens that the teachers find unlikely.
    """

    def __init__(self, teachers: Sequence[GPT], weight: float = 0.5, temperature: float = 1.0):
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.weight, self.temperature = weight, temperature

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of tokens [B, T] and targets [B, T], divided by `valid`: a scalar.

        Raises ValueError if a teacher has another vocabulary.
        """
        if any(model.config.vocab_size != teacher.config.vocab_size for teacher in self.teachers):
            raise ValueError("a teacher has another vocabulary")
        counted = targets != IGNORE  # [B, T], N of them
        ours = _logits(model, tokens, counted)
        with torch.no_grad():
            theirs = mean_probability(_logits(each, tokens, counted) / self.temperature for each in self.teachers)
        data = next_token_loss(ours[None], targets[counted][None], valid=valid, label_smoothing=label_smoothing)
        ours = (ours / self.temperature).log_softmax(-1)
        teaching = F.kl_div(ours, theirs, reduction="sum", log_target=True) * self.temperature**2 / valid
        return (1 - self.weight) * data + self.weight * teaching


def _logits(model: GPT, tokens: Tensor, counted: Tensor) -> Tensor:
    """fp32 logits [N, V] at the counted positions."""
    return model.head(model.hidden(tokens)[counted])[:, : model.config.vocab_size].float()
