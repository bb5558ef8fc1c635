"""Define the interface of the processes (ranks) that train one model together, and its simple case: one process."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor

Made = TypeVar("Made")


class Ranks:
    """The processes that train one model together. This class is for one, `minigpt.runtime.parallel` for more."""

    rank, world = 0, 1
    here = 1  # ranks on this host, which share its memory
    device: torch.device | None = None  # the device of this rank, if it is fixed

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        return value

    def largest(self, value: float) -> float:
        """The largest of the ranks' values, so that all ranks decide the same."""
        return value

    def sync_gradients(self, model: object, now: bool) -> AbstractContextManager[object]:
        """Use around a backward pass: the ranks sum their gradients if `now`, else they keep accumulating."""
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole tensor, if each rank holds only a part of it. Every rank must call this."""
        return tensor

    def own(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a whole tensor, split in the same way as `like`."""
        return tensor

    def broadcast(self, make: Callable[[], Made]) -> Made:
        """Call `make` on rank 0, and return its result on every rank. The others wait without a time limit."""
        return make()

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Call `make` on rank 0, then on the first rank of each other host, then on the rest; returns its own result.

        So later ranks can use files that earlier ranks have written.
        """
        return make()


ALONE = Ranks()
