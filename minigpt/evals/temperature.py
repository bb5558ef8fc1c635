"""Fit the softmax temperature at which a model's probabilities match a text best (Guo et al., 2017, section 4.2).

A model that overfits its training text is too confident on other texts. If all its logits are divided by one number
above 1, fitted on the validation split, the loss on the test split falls too. The likeliest token stays the same.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from minigpt.data import eval_batches
from minigpt.errors import UserError
from minigpt.evals.perplexity import Score, checked_stride, evaluate, non_finite_loss, rows_at_once
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import Runtime, evaluating
from minigpt.training.step import logits_in_pieces

LOWEST, HIGHEST = 0.1, 10.0
_PASSES = 30
_CLOSE = 1e-5  # relative tolerance of the temperature; the loss is then right to about 1e-10


def at_temperature(temperature: float) -> Callable[..., Score]:
    """A `scorer` for `evaluate_run`: evaluates the model at this temperature. Raises UserError."""
    if not 0 < temperature < math.inf:
        raise UserError(f"temperature {temperature} is out of range; choose one above 0")
    return partial(evaluate, temperature=temperature)


def fit_temperature(
    model: nn.Module,
    tokens: npt.NDArray[Any],
    *,
    context: int,
    runtime: Runtime,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> float:
    """The temperature, 0.1 to 10, at which the loss of tokens[1:] is smallest. The arguments are those of `evaluate`.

    The loss is convex in 1 / temperature, so Newton's method finds its only minimum. A step that would leave the
    bracket [low, high] goes to its geometric middle instead. Each step reads the whole text; in all it is two or three
    times the work of `evaluate`.
    Raises as `evaluate`.
    """
    stride = checked_stride(tokens, context, stride, batch_size)
    size = batch_size or max(1, rows_at_once(model, context, runtime.device.type) // 4)  # several copies of the logits
    low, high, inverse = 1 / HIGHEST, 1 / LOWEST, 1.0
    for _ in range(_PASSES):
        batches = eval_batches(tokens, context, stride, size)
        slope, curve = _derivatives(model, batches, inverse, runtime, len(tokens) - 1, progress)
        if not math.isfinite(slope):
            raise non_finite_loss()
        low, high = (inverse, high) if slope < 0 else (low, inverse)
        following = inverse - slope / curve if curve > 0 else math.inf
        close = math.sqrt(_CLOSE)  # after a step of Newton's method the error is about the square of the step
        if not low <= following <= high:
            following, close = math.sqrt(low * high), _CLOSE
        if abs(following - inverse) <= close * inverse:
            return 1 / following
        inverse = following
    return 1 / inverse


@torch.no_grad()
def _derivatives(
    model: nn.Module, batches: Any, inverse: float, runtime: Runtime, total: int, progress: Any
) -> tuple[float, float]:
    """First and second derivatives of the summed loss with respect to 1 / temperature.

    With logits z, target y and p = softmax(inverse z) they are sums of E_p[z] - z_y and Var_p[z].
    """
    slope, curve, done = 0.0, 0.0, 0
    with evaluating(model):
        for inputs, targets in batches:
            with runtime.autocast():
                for logits, wanted in logits_in_pieces(model, inputs.to(runtime.device), targets.to(runtime.device)):
                    counted = wanted != IGNORE
                    z = logits[counted].float()  # [N, V]
                    z -= z.amax(-1, keepdim=True)
                    weights = (inverse * z).exp_()
                    sums = weights.sum(-1)
                    mean = weights.mul_(z).sum(-1) / sums
                    square = weights.mul_(z).sum(-1) / sums
                    slope += (mean - z.gather(-1, wanted[counted][:, None])[:, 0]).cpu().double().sum().item()
                    curve += (square - mean.square()).cpu().double().sum().item()
                    done += len(z)
            if progress:
                progress(done, total)
    return slope, curve
