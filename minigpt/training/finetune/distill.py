"""The loss of learning from the probabilities of one or more teachers besides the data (Hinton et al., 2015)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.ensemble import mean_probability
from minigpt.model.loss import IGNORE, next_token_loss


class Distillation:
    """(1 - weight) x next-token loss + weight x temperature^2 x KL(teachers || model), a `Loss` of the model.

    The teachers' distribution is the mean of their probabilities. All are those of logits / temperature; the factor
    keeps the gradient's size whatever it is. Only places with a target count, and only there are logits made: N of them
    are N x V floats three times, whatever the number of teachers.

    Args:
        teachers: of the model's vocabulary, on the same device; they are put in evaluation mode and get no gradient.
        weight: share of the teachers, above 0, 1 for them alone.
        temperature: above 1 shows more of what the teachers hold for unlikely.
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
    """fp32 logits [N, V] at the counted places."""
    return model.head(model.hidden(tokens)[counted])[:, : model.config.vocab_size].float()
