"""What a precision needs beside autocast: its test against fp32, fp32 copies of bf16 weights, fp8 layers.

A format that a device has is not yet one that it computes well with, so the chosen one is tried before the first step:
loss and gradients of a small batch, by the run's own kernels, against the same in fp32.
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
"""Largest relative error of all gradients together: three times and more of what is measured where a format works (on
a CPU, widths 64 to 768: bf16 and bf16-pure 0.005 to 0.016, fp16 0.002). tf32 has fp16's bits, fp8 4 fewer than bf16.
"""
VOCABULARY, LENGTH, WIDE = 256, 64, 512
SCALE = 1024.0  # of the loss, so that small gradients are not zero in fp16


@dataclass(frozen=True)
class Verdict:
    """How far a precision is from fp32: relative errors of the loss, and of the gradients as one vector."""

    precision: str
    loss: float
    gradient: float

    @property
    def ok(self) -> bool:
        """Whether to train with it; not if a figure is not a number."""
        bound = BOUNDS[self.precision]
        return self.gradient <= bound and self.loss <= bound / 2

    def __str__(self) -> str:
        return f"{self.precision} against fp32: loss off by {self.loss:.1e}, gradients by {self.gradient:.1e}"


def self_test(shape: ModelConfig, runtime: Runtime) -> Verdict:
    """Try the runtime's precision on a model of this width, cut to 2 layers (a wide one: 1), 256 ids and 64 tokens."""
    vocabulary = min(shape.vocab_size or VOCABULARY, VOCABULARY)
    layers = min(shape.num_layers, 1 if shape.embed_dim >= WIDE else 2)
    cut = {"num_layers": layers, "vocab_size": vocabulary}
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
    """Loss, and the gradients as one vector."""
    model.zero_grad()
    with runtime.products():
        with runtime.autocast():
            loss = model.loss(ids[:, :-1], ids[:, 1:], valid=ids[:, 1:].numel())
        (loss * SCALE).backward()
    parts = [p.grad.flatten().float() for p in model.parameters() if p.grad is not None]
    return loss.item(), torch.cat(parts) / SCALE


State = dict[Tensor, dict[str, Tensor]]


class Optimizer(Protocol):
    """What training asks of an optimizer; torch's are some too."""

    param_groups: list[dict[str, Any]]
    """One dict per group: its parameters (`params`), and the rate of its next step (`lr`)."""
    state: State
    """What it remembers of each parameter, by name."""

    def step(self) -> object:
        """Update the parameters that have a gradient."""


class MasterWeights:
    """Any optimizer, for a model whose weights are bf16: it works on fp32 copies, from which they are rounded again.

    An update of less than 1/256 of a weight would vanish in bf16; in the copies it adds up (Micikevicius et al., 2018,
    3.1). The copies are part of the optimizer's state, "master", and so of every checkpoint.

    Args:
        optimizer: over weights that are still fp32.
        model: theirs; it becomes bf16.
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
        """For the time of the step the weights are the copies, and the gradients fp32."""
        parameters = self._parameters()
        gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = None  # a gradient has its weight's type, always
            parameter.data = self.state[parameter].pop("master")
            parameter.grad = None if gradient is None else gradient.float()
        self.inner.step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            self.state[parameter]["master"] = parameter.data
            parameter.grad = None
            parameter.data = parameter.data.to(torch.bfloat16)
            parameter.grad = gradient


def with_masters(optimizer: Optimizer, model: nn.Module, runtime: Runtime) -> Optimizer:
    """The optimizer, or for bf16-pure `MasterWeights` around it."""
    return MasterWeights(optimizer, model) if runtime.precision == "bf16-pure" else optimizer


def use_fp8(model: GPT) -> None:
    """Let the blocks' linear layers multiply in fp8, in place, scaled by tensor (torchao.float8).

    Sides that are not a multiple of 16 stay as they are, and so do the weights: fp32, under their names.
    `minigpt.runtime.device.make_runtime` has seen that torchao and such a device are here.
    """
    from torchao.float8 import convert_to_float8_training  # pyright: ignore[reportMissingImports]  an extra

    def fits(module: nn.Module, name: str) -> bool:
        return isinstance(module, nn.Linear) and module.in_features % 16 == 0 and module.out_features % 16 == 0

    for block in model.blocks:
        convert_to_float8_training(block, module_filter_fn=fits)
