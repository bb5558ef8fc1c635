"""The activations of the feed-forward part by name. What one needs anywhere in the code stands in its row.

To add one: a row here, and its name in `config.tree.ModelConfig.activation`; if it is gated, in `GATED` there too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Activate = Callable[[Tensor], Tensor]
"""[..., H] -> [..., H]; of a gated one [..., 2 H] -> [..., H]: the first half are the gates."""


class Activation(NamedTuple):
    """One activation.

    reference: the readable form.
    torch: the form that models run.
    in_c: its number in rows.c; None if the C kernels do not know it, so generation runs its blocks in torch.
    formula: of the hidden vector, for the walk through a model.
    """

    reference: Activate
    torch: Activate
    in_c: int | None
    formula: str


def _swiglu(x: Tensor) -> Tensor:
    gate, hidden = x.chunk(2, dim=-1)
    return F.silu(gate) * hidden


def _readable_gelu(x: Tensor) -> Tensor:
    """x times the chance that a normal number is below x (Hendrycks and Gimpel, 2016)."""
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def _readable_gelu_tanh(x: Tensor) -> Tensor:
    """The approximation that GPT-2 was trained with (the same, section 2)."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _readable_swiglu(x: Tensor) -> Tensor:
    """The second half times silu of the first (Shazeer, 2020); silu(x) = x times the logistic function of x."""
    half = x.shape[-1] // 2
    gate, hidden = x[..., :half], x[..., half:]
    return gate / (1 + torch.exp(-gate)) * hidden


ACTIVATIONS = {
    "gelu": Activation(_readable_gelu, F.gelu, 0, "gelu(W₁n)"),
    "gelu_tanh": Activation(_readable_gelu_tanh, lambda x: F.gelu(x, approximate="tanh"), 1, "gelu_tanh(W₁n)"),
    "relu": Activation(lambda x: x.clamp(min=0), F.relu, None, "relu(W₁n)"),
    "relu2": Activation(lambda x: x.clamp(min=0) ** 2, lambda x: F.relu(x).square(), 2, "relu2(W₁n)"),
    "swiglu": Activation(_readable_swiglu, _swiglu, 3, "silu(W₁n) · W₂n"),
}
