"""Give a model another loss than its own, and define the part of a model that a checkpoint keeps."""

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
        """Like `Learner.loss`, with the trained model as the first argument."""
        ...


class Objective:
    """A learner: a model, or a compiled view of it, with another loss than its own."""

    def __init__(self, model: GPT, compute: Loss):
        self.model, self.compute = model, compute

    def parameters(self) -> Iterator[nn.Parameter]:
        """The model's parameters."""
        return self.model.parameters()

    def loss(self, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, a scalar."""
        return self.compute(self.model, tokens, targets, valid=valid, label_smoothing=label_smoothing)


@dataclass(frozen=True)
class MaskedInputs:
    """Next-token loss + weight x the same loss with some input tokens masked (arXiv 2606.06888), a `Loss`.

    For each sequence, the share of masked tokens is drawn evenly from 0 to `most`; the targets stay. The model cannot
    rely on any single token, so it learns more from a text that it reads many times. The second pass takes as long as
    the first. The value is that of the plain loss alone, so that you can compare runs; the gradient is that of
    the sum.

    Args:
        most: largest share of a sequence's input tokens that are masked.
        weight: weight of the second loss.
    """

    most: float
    weight: float

    def __call__(
        self, model: GPT, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0
    ) -> Tensor:
        """The loss of tokens [B, T] and targets [B, T], a scalar; the model must have called `take_masks`."""
        plain = model.loss(tokens, targets, valid=valid, label_smoothing=label_smoothing)
        masked = model.loss(self.mask(tokens), targets, valid=valid, label_smoothing=label_smoothing)
        return plain + self.weight * (masked - masked.detach())

    def mask(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] with MASKED at random positions, drawn from torch's generator as dropout is."""
        share = self.most * torch.rand(len(tokens), 1, device=tokens.device)
        return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < share, MASKED)


@dataclass(frozen=True)
class Saved:
    """The part of a model that a checkpoint keeps: its name, and a function that gives its tensors by name."""

    part: str
    tensors: Callable[[GPT], dict[str, Tensor]]


WHOLE = Saved("model", GPT.weights)
