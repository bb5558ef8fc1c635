"""The loss of learning from a teacher's probabilities besides the data (Hinton et al., 2015)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.model import GPT
from minigpt.model.loss import IGNORE, next_token_loss


class Distillation:
    """(1 - weight) x next-token loss + weight x temperature^2 x KL(teacher || model), a `Loss` of the model.

    Both distributions are those of logits / temperature; the factor keeps the gradient's size whatever it is. Only
    places with a target count, and only there are logits made: N of them are N x V floats twice.

    Args:
        teacher: of the model's vocabulary, on the same device; it is put in evaluation mode and gets no gradient.
        weight: share of the teacher, above 0, 1 for the teacher alone.
        temperature: above 1 shows more of what the teacher holds for unlikely.
    """

    def __init__(self, teacher: GPT, weight: float = 0.5, temperature: float = 1.0):
        self.teacher = teacher.eval().requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of tokens [B, T] and targets [B, T], divided by `valid`: a scalar.

        Raises ValueError if the teacher has another vocabulary.
        """
        if model.config.vocab_size != self.teacher.config.vocab_size:
            raise ValueError("the teacher has another vocabulary")
        counted = targets != IGNORE  # [B, T], N of them
        ours = _logits(model, tokens, counted)
        with torch.no_grad():
            theirs = _logits(self.teacher, tokens, counted)
        data = next_token_loss(ours[None], targets[counted][None], valid=valid, label_smoothing=label_smoothing)
        ours, theirs = ((logits / self.temperature).log_softmax(-1) for logits in (ours, theirs))
        teaching = F.kl_div(ours, theirs, reduction="sum", log_target=True) * self.temperature**2 / valid
        return (1 - self.weight) * data + self.weight * teaching


def _logits(model: GPT, tokens: Tensor, counted: Tensor) -> Tensor:
    """fp32 logits [N, V] at the counted places."""
    return model.head(model.hidden(tokens)[counted])[:, : model.config.vocab_size].float()
