"""Run Muon (Jordan et al., 2024, kellerjordan.github.io/posts/muon): momentum, then the nearest orthogonal matrix.
NorMuon (Li et al., 2025, arXiv 2510.05491) then makes the rows of the update, one for each neuron, equally large.

AdamW scales each number of a gradient separately. Muon treats a matrix as a whole and makes all its directions equally
large, so that rare directions are learned too. Notable: matrices that are stacked in one parameter (q, k, v) are
orthogonalised separately, and all matrices of one shape are computed in one batch.
"""

from collections import defaultdict

import torch
from torch import Tensor

from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training.adamw import AdamW


def orthogonalise(matrices: Tensor, steps: int = 5, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Roughly U V^T of each matrix U S V^T in [N, rows, columns], by Newton-Schulz iterations in `dtype`.

    One iteration is x <- (a + b s + c s s) x, with s = x x^T, so it needs only matrix products. The coefficients are
    Jordan's. They bring every singular value quickly near 1 (between about 0.7 and 1.2), which works as well as exactly
    1. All factors are polynomials of the first s. So in fp32 the factors are multiplied first, with s <- factor s
    factor, and a long matrix x is multiplied only once, at the end. That is faster from 64 rows on; in bf16 it would
    lose too much precision.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.to(dtype)
    if tall := x.shape[1] > x.shape[2]:
        x = x.mT  # make rows the smaller side, since the products below are rows x rows
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
        adamw: the optimizer of all other parameters.
        lr: Muon's rate.
        momentum, weight_decay: decay of the gradient's running mean; decoupled weight decay.
        row_beta: for NorMuon, decay of the running mean of a row's squared size; None for Muon.
        dtype: dtype of the orthogonalisation. bf16 is precise enough; use it on devices where it is fast.
        ranks: if each rank holds a part of a matrix, every rank computes the whole update and uses its part.
    """

    def __init__(
        self,
        pieces: dict[Tensor, list[int]],
        adamw: AdamW,
        lr: float,
        momentum: float,
        weight_decay: float,
        row_beta: float | None = None,
        dtype: torch.dtype = torch.bfloat16,
        ranks: Ranks = ALONE,
    ):
        self.pieces, self.adamw, self.row_beta, self.dtype, self.ranks = pieces, adamw, row_beta, dtype, ranks
        own = {"params": list(pieces), "lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        self.param_groups = [own, *adamw.param_groups]
        self.state = adamw.state  # checkpoints and schedules see one optimizer

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
            ahead = self.ranks.whole(parameter.grad.lerp(total, group["momentum"]))  # Nesterov: a step ahead
            wholes.append((parameter, ahead))
            for piece in ahead.split(self.pieces[parameter]):
                batches[piece.shape].append(piece)
        for (high, wide), members in batches.items():
            updates = orthogonalise(torch.stack(members), dtype=self.dtype) * max(1.0, high / wide) ** 0.5
            for piece, update in zip(members, updates, strict=True):
                piece.copy_(update)  # a view of `ahead`
        for parameter, update in wholes:
            if self.row_beta is not None:
                self._even_rows(parameter, update, self.row_beta)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(self.ranks.own(update, parameter), alpha=-group["lr"])

    def _even_rows(self, parameter: Tensor, update: Tensor, beta: float) -> None:
        """Divide each row of the update [R, C] by its usual size, and keep the size of the whole, in place.

        The running mean begins at zero: what that changes is the same for all rows, and so without effect.
        """
        state, size = self.state[parameter], update.norm()
        if "rows" not in state:
            state["rows"] = self.ranks.own(update.new_zeros(len(update), 1), parameter)
        state["rows"].lerp_(self.ranks.own(update.square().mean(1, keepdim=True), parameter), 1 - beta)
        update.div_(self.ranks.whole(state["rows"]).sqrt().clamp(min=1e-12))
        update.mul_(size / update.norm().clamp(min=1e-12))
