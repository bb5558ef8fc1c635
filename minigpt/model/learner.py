"""What training trains: anything with parameters and a loss. A GPT is one."""

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor, nn


class Learner(Protocol):
    """What a training step and an evaluation call."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights, those that do not learn too."""
        ...

    def loss(self, tokens: Tensor, targets: Tensor, *, valid: int | Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The loss of a batch, summed over its valid targets and divided by `valid`: a scalar."""
        ...
