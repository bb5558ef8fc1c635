"""Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum, then the nearest orthogonal matrix.

AdamW scales each number of a gradient alone. Muon looks at a matrix as a whole and makes all its directions equally
large, so that rare ones are learned too. Notable: matrices stacked in one parameter (q, k, v) are orthogonalised
apart, and all of one shape together in one batch.
"""

from collections import defaultdict

import torch
from torch import Tensor

from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training.adamw import AdamW


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Roughly U V^T of each matrix U S V^T in [N, rows, columns], by Newton-Schulz iterations in `dtype`.

    The quintic's coefficients are Jordan's: they bring every singular value near 1 fast, not to 1 exactly
    (between about 0.7 and 1.2), which serves as well and needs products only: x becomes (a + b s + c s s) x, where s is
    x x^T. All these factors are polynomials of the first s, so in fp32 a long matrix is multiplied only once, at the
    end, and s follows by itself: factor s factor. That pays from 64 rows on; in bf16 it would lose too much.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT  # the smaller side first: the products below are rows x rows
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    if dtype == torch.float32 and x.shape[2] >= 2 * x.shape[1] >= 128:
        square, whole = x @ x.mT, None
        for step in range(steps):
            factor = torch.baddbmm(square, square, square, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            whole = factor if whole is None else factor @ whole
            if step < steps - 1:
                square = factor @ square @ factor
        x = x if whole is None else whole @ x
    else:
        for _ in range(steps):
            square = x @ x.mT
            x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices.dtype)


class Muon:
    """Muon for some matrices, the given AdamW for the rest, as one optimizer.

    Args:
        pieces: parameter [rows, columns] -> rows of the matrices stacked in it.
        adamw: over all other parameters.
        lr: Muon's rate.
        momentum, weight_decay: decay of the gradient's running sum; decoupled decay.
        dtype: of the orthogonalisation, which bf16 serves well where it is fast.
        ranks: where each has a part of a matrix, all make the whole update, and take their part of it.
    """

    def __init__(
        self,
        pieces: dict[Tensor, list[int]],
        adamw: AdamW,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.bfloat16,
        ranks: Ranks = ALONE,
    ):
        self.pieces, self.adamw, self.dtype, self.ranks = pieces, adamw, dtype, ranks
        own = {"params": list(pieces), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = [own, *adamw.param_groups]
        self.state = adamw.state  # one account of state and of rates, for checkpoints and schedules

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        self.adamw.step()
        group, wholes = self.param_groups[0], []
        batches: dict[torch.Size, list[Tensor]] = defaultdict(list)
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            total = self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
            total.lerp_(parameter.grad, 1 - group["momentum"])
            ahead = self.ranks.whole(parameter.grad.lerp(total, group["momentum"]))  # Nesterov: one step further along
            wholes.append((parameter, ahead))
            for piece in ahead.split(self.pieces[parameter]):
                batches[piece.shape].append(piece)
        for (high, wide), members in batches.items():
            updates = orthogonalise(torch.stack(members), dtype=self.dtype) * max(1.0, high / wide) ** 0.5
            for piece, update in zip(members, updates, strict=True):
                piece.copy_(update)  # a part of `ahead`
        for parameter, update in wholes:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(self.ranks.own(update, parameter), alpha=-group["lr"])
