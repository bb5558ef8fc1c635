"""List the norms by name. A row of `NORMS` holds everything that the code needs to know about a norm.

To add one, write a row here and add its name to `config.tree.ModelConfig.norm`.
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
    has_bias: whether it adds a bias in models that have biases.
    in_c: its number in rows.c. None: the C kernels do not have it, and generation runs the blocks in torch.
    formula: shown by `minigpt explain`.
    """

    reference: Normalise
    torch: Normalise
    has_bias: bool
    in_c: int | None
    formula: str


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def _rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)  # computes in fp32, also under autocast


def _readable_rms_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    return reference.rms_norm(x, weight, eps)


NORMS = {
    "layernorm": NormKind(reference.layer_norm, _layer_norm, True, 0, "(x - mean) / std · w + b"),
    "rmsnorm": NormKind(_readable_rms_norm, _rms_norm, False, 1, "x / rms(x) · w"),
}
