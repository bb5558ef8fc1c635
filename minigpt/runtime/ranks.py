"""The processes that train one model together, as the rest of the code sees them; one alone is the plain case."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Ranks:
    """The processes that train one model together. This is one alone; `minigpt.runtime.parallel` has several."""

    rank, world = 0, 1
    device: torch.device | None = None  # where this rank computes, if it may not choose

    def total(self, value: Tensor) -> Tensor:
        """Sum over the ranks."""
        return value

    def largest(self, value: float) -> float:
        """The largest of the ranks' values: what all of them then decide by."""
        return value

    def exchange(self, model: object, now: bool) -> AbstractContextManager[object]:
        """Around a backward pass: whether the ranks add up their gradients `now`, or go on accumulating."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """All of a tensor of which each rank may hold a part; every rank must ask."""
        return tensor

    def own(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a whole tensor, divided as `like` is."""
        return tensor

    def share(self, make: Callable[[], Made]) -> Made:
        """What rank 0 makes, on every rank; the others wait, however long it takes."""
        return make()

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """What each rank makes: rank 0, then the first of every other host, then the rest, who find what those left."""
        return make()


ALONE = Ranks()
