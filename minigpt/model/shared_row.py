"""Share one row of the output matrix among the tokens that a text does not have: a step computes fewer logits."""

import math
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.model.heads import output_matrix
from minigpt.model.loss import IGNORE


@dataclass(frozen=True)
class SharedRow:
    """The ids that have rows of their own in training, and those that share one.

    GPT-2's tokenizer has 50,257 ids, but a text of 1 MB uses some 14,000. The others are never a target, so training
    only makes them less likely, and all in the same way. If all n of them have the same row, they have the same logit.
    In the sum of a softmax they are then n exp(logit) = exp(logit + ln n): one column in place of n. The loss and its
    gradient are those of the model with equal rows, so `tie` makes the rows equal after each update.

    Attributes:
        rows: [R or more] the ids whose logits are computed, in ascending order; then the one that stands for `others`;
            then the same again, up to a multiple of 64, for aligned matrix products.
        count: R, the number of logits.
        places: [V] where each id is among `rows`.
        others: [n] the ids that share a row.
    """

    rows: Tensor
    count: int
    places: Tensor
    others: Tensor

    @classmethod
    def of(cls, used: npt.NDArray[np.bool_]) -> Self:
        """Make it from which ids have rows of their own: [V]. At least one has not."""
        own, others = (torch.from_numpy(np.flatnonzero(which)) for which in (used, ~used))
        count = len(own) + 1
        places = torch.full((len(used),), len(own))
        places[own] = torch.arange(len(own))
        rows = torch.cat([own, others[:1].expand(-count % 64 + 1)])
        return cls(rows, count, places, others)

    def to(self, device: torch.device) -> Self:
        """The same on a device."""
        return replace(self, rows=self.rows.to(device), places=self.places.to(device), others=self.others.to(device))

    @property
    def extra(self) -> float:
        """What the last logit counts more than one id's: ln n."""
        return math.log(len(self.others))

    def weight(self, weight: Tensor) -> Tensor:
        """The output matrix [V or more, C] -> [R or more, C]."""
        return F.embedding(self.rows, weight)

    def targets(self, targets: Tensor) -> Tensor:
        """Ids that have rows of their own, or -100 -> their places, or -100."""
        return torch.where(targets == IGNORE, IGNORE, self.places[targets.clamp(min=0)])

    @torch.no_grad()
    def tie(self, head: nn.Module) -> None:
        """Give all ids in `others` the row of the first of them."""
        weight = output_matrix(head).weight
        weight[self.others] = weight[self.others[0]].clone()
