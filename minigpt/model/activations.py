"""List the activations of the feed-forward part by name, each in one row with all that the code needs to know.

To add one, write a row here and add its name to `config.tree.ModelConfig.activation`. Add a gated one to `GATED` there
too.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Activate = Callable[[Tensor], Tensor]
"""[..., H] -> [..., H]. A gated activation maps [..., 2 H] -> [..., H]; the first half holds the gates."""


class Activation(NamedTuple):
    """One activation.

    reference: the readable form.
    torch: the form that models run. It has a name, so that a model can be pickled.
    in_c: its number in rows.c. None: the C kernels do not have it, and generation runs the blocks in torch.
    formula: how the hidden vector is computed, shown by `minigpt explain`.
    """

    reference: Activate
    torch: Activate
    in_c: int | None
    formula: str


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _relu2(x: Tensor) -> Tensor:
    return F.relu(x).square()


def _swiglu(x: Tensor) -> Tensor:
    gate, hidden = x.chunk(2, dim=-1)
    return F.silu(gate) * hidden


def _readable_gelu(x: Tensor) -> Tensor:
    """Multiply x by the probability that a standard normal number is below x (Hendrycks and Gimpel, 2016)."""
    return x / 2 * (1 + torch.erf(x / math.sqrt(2)))


def _readable_gelu_tanh(x: Tensor) -> Tensor:
    """Compute the approximation that GPT-2 was trained with (Hendrycks and Gimpel, 2016, section 2)."""
    return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _readable_swiglu(x: Tensor) -> Tensor:
    """Multiply the second half by silu of the first half (Shazeer, 2020). silu(x) is x times the sigmoid of x."""
    half = x.shape[-1] // 2
    gate, hidden = x[..., :half], x[..., half:]
    return gate / (1 + torch.exp(-gate)) * hidden


ACTIVATIONS = {
    "gelu": Activation(_readable_gelu, F.gelu, 0, "gelu(W₁n)"),
    "gelu_tanh": Activation(_readable_gelu_tanh, _gelu_tanh, 1, "gelu_tanh(W₁n)"),
    "relu": Activation(lambda x: x.clamp(min=0), F.relu, 4, "relu(W₁n)"),
    "relu2": Activation(lambda x: x.clamp(min=0) ** 2, _relu2, 2, "relu2(W₁n)"),
    "swiglu": Activation(_readable_swiglu, _swiglu, 3, "silu(W₁n) · W₂n"),
}
