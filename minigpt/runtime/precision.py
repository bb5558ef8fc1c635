"""Test a precision against fp32, keep fp32 copies of bf16 weights, and convert layers to fp8.

A device may offer a format and still compute badly in it. So the chosen precision is tested before the first step: the
loss and gradients of a small batch, with the run's own kernels, are compared with those in fp32.
"""

import copy
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model import GPT
from minigpt.runtime.device import Runtime

BOUNDS = {"fp32": 1e-3, "tf32": 0.01, "bf16": 0.05, "fp16": 0.01, "bf16-pure": 0.05, "fp8": 0.4}
"""Largest allowed relative error of all gradients together. It is at least three times the error of a working format
(on a CPU, widths 64 to 768: bf16 and bf16-pure 0.005 to 0.016, fp16 0.002). tf32 has as many mantissa bits as fp16, fp8
has 4 fewer than bf16."""
VOCABULARY, LENGTH, WIDE = 256, 64, 512
SCALE = 1024.0  # factor of the loss, so that small gradients are not zero in fp16


@dataclass(frozen=True)
class Verdict:
    """The errors of a precision against fp32: of the loss, and of all gradients as one vector, both relative."""

    precision: str
    loss: float
    gradient: float

    @property
    def ok(self) -> bool:
        """Whether to train with it: both errors are small enough, and not NaN."""
        bound = BOUNDS[self.precision]
        return self.gradient <= bound and self.loss <= bound / 2

    def __str__(self) -> str:
        return f"{self.precision} against fp32: loss off by {self.loss:.1e}, gradients by {self.gradient:.1e}"


def self_test(shape: ModelConfig, runtime: Runtime) -> Verdict:
    """Test the runtime's precision on a model of this width, with at most 2 layers (wide: 1), 256 ids and 64 tokens."""
    vocabulary = max(2, min(shape.vocab_size or VOCABULARY, VOCABULARY))  # with one id, the loss is always 0
    layers = min(shape.num_layers, 1 if shape.embed_dim >= WIDE else 2)
    cut = {"num_layers": layers, "vocab_size": vocabulary, "bigrams": min(shape.bigrams, vocabulary)}
    small = shape.model_copy(update={**cut, "max_seq_len": min(shape.max_seq_len, LENGTH)})
    model = GPT(small, seed=1).to(runtime.device).eval()  # dropout would draw differently in each precision
    ids = torch.randint(vocabulary, (1, small.max_seq_len + 1), generator=torch.Generator().manual_seed(1))
    loss, gradient = _try(model, ids.to(runtime.device), replace(runtime, precision="fp32"))
    low = copy.deepcopy(model)
    if runtime.precision == "fp8":
        use_fp8(low)
    if runtime.precision == "bf16-pure":
        low.to(torch.bfloat16)
    low_loss, low_gradient = _try(low, ids.to(runtime.device), runtime)
    off = (low_gradient - gradient).norm() / gradient.norm()
    return Verdict(runtime.precision, abs(low_loss - loss) / loss, off.item())


def _try(model: GPT, ids: Tensor, runtime: Runtime) -> tuple[float, Tensor]:
    """Compute the loss, and the gradients as one vector."""
    model.zero_grad()
    with runtime.products():
        with runtime.autocast():
            loss = model.loss(ids[:, :-1], ids[:, 1:], valid=ids[:, 1:].numel())
        (loss * SCALE).backward()
    parts = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(parts) / SCALE


State = dict[Tensor, dict[str, Tensor]]


class Optimizer(Protocol):
    """The interface that training needs of an optimizer. torch's optimizers have it too."""

    param_groups: list[dict[str, Any]]
    """One dict per group: its parameters (`params`), and the learning rate of its next step (`lr`)."""
    state: State
    """Parameter -> its state tensors, by name."""

    def step(self) -> object:
        """Update the parameters that have a gradient."""


class MasterWeights:
    """Wraps an optimizer for a model in bf16: it updates fp32 copies of the weights, and rounds them to bf16.

    An update of less than 1/256 of a weight would be lost in bf16, but adds up in the copies (Micikevicius et al.,
    2018, 3.1). The copies are in the optimizer's state under "master", so every checkpoint has them.

    Args:
        optimizer: its weights must still be fp32.
        model: the model with these weights; it becomes bf16.
    """

    def __init__(self, optimizer: Optimizer, model: nn.Module):
        self.inner, self.param_groups, self.state = optimizer, optimizer.param_groups, optimizer.state
        for parameter in self._parameters():
            self.state[parameter]["master"] = parameter.data
        model.to(torch.bfloat16)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def step(self) -> None:
        """Replace weights by their copies and gradients by fp32, make the step, and change back to bf16."""
        parameters = self._parameters()
        gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None  # torch wants a gradient to have its weight's dtype
            parameter.data = self.state[parameter].pop("master")
            parameter.grad = None if gradient is None else gradient.float()
        self.inner.step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self.state[parameter]["master"] = parameter.data
            parameter.grad = None
            parameter.data = parameter.data.to(torch.bfloat16)
            parameter.grad = gradient


def with_masters(optimizer: Optimizer, model: nn.Module, runtime: Runtime) -> Optimizer:
    """Return the optimizer, wrapped in `MasterWeights` if the precision is bf16-pure."""
    return MasterWeights(optimizer, model) if runtime.precision == "bf16-pure" else optimizer


def use_fp8(model: GPT) -> None:
    """Let the blocks' linear layers multiply in fp8, in place, with one scale per tensor (torchao.float8).

    Layers with a side that is not a multiple of 16 are not converted. The weights stay fp32, under the same names.
    `minigpt.runtime.device.make_runtime` has checked that torchao and a suitable device are here.
    """
    from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]  an extra

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    for block in model.blocks:
        convert_to_float8_training(block, module_filter_fn=fits)
