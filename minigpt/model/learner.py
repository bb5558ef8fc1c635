"""Define what the trainer needs of a model: parameters and a loss. A GPT has both."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Learner(Protocol):
    """The methods that a training step and an evaluation call."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, including frozen ones."""
        ...

    def loss(self, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, summed over its valid targets and divided by `valid`: a scalar."""
        ...
