"""Give a model another loss than its own, and say what a checkpoint keeps of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from minigpt.model import GPT
from minigpt.model.inputs import MASKED


class Loss(Protocol):
    """A loss that is computed with a model, such as distillation or a preference between two answers."""

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """As `Learner.loss`, with the model that learns."""
        ...


class Objective:
    """A learner: a model, or a compiled view of one, under a loss that is not its own."""

    def __init__(self, model: GPT, compute: Loss):
        self.model, self.compute = model, compute

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of the model."""
        return self.model.parameters()

    def loss(self, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.compute(self.model, tokens, targets, valid=valid, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class MaskedInputs:
    """Next-token loss + weight x the same loss where some input tokens are masked (arXiv 2606.06888), a `Loss`.

    Of each sequence a share is masked that is drawn evenly from 0 to `most`; the targets stay. The model cannot rely on
    any one token, so it learns more from a text that it reads many times. The second pass costs what the first does.
    The value is that of the plain loss alone, so that it compares with other runs'; the gradient is that of the sum.

    Args:
        most: largest share of the input tokens of a sequence that are masked.
        weight: of the second loss.
    """

    most: float
    weight: float

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """Of tokens [B, T] and targets [B, T], for a model that has its `take_masks`: a scalar."""
        plain = model.loss(tokens, targets, valid=valid, label_smoothing=label_smoothing)
        masked = model.loss(self.mask(tokens), targets, valid=valid, label_smoothing=label_smoothing)
        return plain + self.weight * (masked - masked.detach())

    def mask(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] with MASKED in some places, drawn from torch's generator as dropout is."""
        share = self.most * torch.rand(len(tokens), 1, device=tokens.device)
        return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < share, MASKED)


@dataclass(frozen=True)
class Saved:
    """What a checkpoint keeps of a model: the name of the part, and its tensors by name."""

    part: str
    tensors: Callable[[GPT], dict[str, Tensor]]


WHOLE = Saved("model", GPT.weights)
