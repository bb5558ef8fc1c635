"""Give a model another loss than its own, and say what a checkpoint keeps of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from minigpt.model import GPT


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
class Saved:
    """What a checkpoint keeps of a model: the name of the part, and its tensors by name."""

    part: str
    tensors: Callable[[GPT], dict[str, Tensor]]


WHOLE = Saved("model", GPT.weights)
