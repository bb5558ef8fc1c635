"""The norms by name. What a norm needs anywhere in the code stands in its row of `NORMS`.

To add one: a row here, and its name in `config.tree.ModelConfig.norm`.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from minigpt.model import reference

Normalise = Callable[[Tensor, Tensor, Tensor | None, float], Tensor]
"""(x [..., size], weight [size], bias [size] or None, eps) -> [..., size]."""


class NormKind(NamedTuple):
    """One norm.

    reference: the readable form.
    torch: the form that models run.
    has_bias: whether it shifts too, where the model has biases.
    in_c: its number in rows.c; None if the C kernels do not know it, so generation runs its blocks in torch.
    formula: for the walk through a model.
    """

    reference: Normalise
    torch: Normalise
    has_bias: bool
    in_c: int | None
    formula: str


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)  # in fp32 inside, also under autocast


def _readable_rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return reference.rms_norm(x, weight, eps)


NORMS = {
    "layernorm": NormKind(reference.layer_norm, _layer_norm, True, 0, "(x - mean) / std · w + b"),
    "rmsnorm": NormKind(_readable_rms_norm, _rms_norm, False, 1, "x / rms(x) · w"),
}
