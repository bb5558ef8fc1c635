"""Train a model with LoRA (Hu et al., 2021): its weights are frozen, and small added matrices learn.

Notable: `add_lora` replaces layers of a built model. An adapted layer shares its weight and bias with the layer that it
replaced, under the same names. So the base never changes, and adding, changing or removing an adapter does not copy it.
"""

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config.finetune import LoRAConfig
from minigpt.errors import CheckpointError, ConfigError, nearest
from minigpt.model import GPT
from minigpt.model.kernels.dropout import dropout

PARTS = ("lora_A", "lora_B")


class LoRALinear(nn.Linear):
    """A linear layer [..., K] -> [..., N] plus scale B A x, with A [r, K] and B [N, r].

    Args:
        linear: the layer that it replaces; its weight [N, K] and bias are shared.
        config: rank, scale, dropout.
        generator: draws A, uniform within 1 / sqrt(K) as in torch's linear layers; B is zero, so the output is the
            same at first.
    """

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator):
        super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.scale, self.dropout = config.scale, config.dropout
        bound = self.in_features**-0.5
        drawn = torch.empty(config.rank, self.in_features, device=generator.device)
        drawn.uniform_(-bound, bound, generator=generator)
        self.lora_A = nn.Parameter(drawn.to(linear.weight))
        self.lora_B = nn.Parameter(linear.weight.new_zeros(self.out_features, config.rank))
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        low = F.linear(dropout(input, self.dropout, self.training), self.lora_A)  # [..., r]
        return F.linear(input, self.weight, self.bias) + self.scale * F.linear(low, self.lora_B)

    def base(self) -> nn.Linear:
        """The replaced layer, with the same weight and bias."""
        return _linear(self, cast(nn.Parameter, self.weight))

    def merged(self) -> nn.Linear:
        """A plain linear layer with the same output; its new weight W + scale B A is summed in fp32 or more."""
        wide = torch.promote_types(self.weight.dtype, torch.float32)
        first, second, weight = (part.detach().to(wide) for part in (self.lora_A, self.lora_B, self.weight))
        return _linear(self, nn.Parameter((weight + self.scale * second @ first).to(self.weight.dtype)))


def _linear(like: nn.Linear, weight: nn.Parameter) -> nn.Linear:
    linear = nn.Linear(like.in_features, like.out_features, bias=like.bias is not None, device="meta")
    linear.weight, linear.bias = weight, like.bias
    return linear.train(like.training)


def add_lora(model: GPT, config: LoRAConfig, seed: int = 0) -> GPT:
    """Freeze the model and add a new adapter, in place; the output is the same until B is trained.

    Training needs nothing else: `make_optimizer` takes only the parameters that require a gradient, here A and B. Call
    `merge` before you prepare the model for fast decoding, and make a `compiled()` view after adding the adapter.

    Raises:
        ConfigError: a target names no linear layer, or it names a head that is tied to the embedding.
        ValueError: the model already has an adapter.
    """
    if layers(model):
        raise ValueError("the model has an adapter already; merge or remove it first")
    names = find_targets(model, config.targets)
    generator = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        replace(model, name, LoRALinear(linear, config, generator))
    return model


def find_targets(model: GPT, patterns: Iterable[str]) -> list[str]:
    """Dotted names of the linear layers that the patterns match. Raises ConfigError as `add_lora`.

    find_targets(model, ["qkv"]) -> ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]
    """
    linears = [name for name, module in model.named_modules() if type(module) is nn.Linear]
    found: set[str] = set()
    for pattern in patterns:
        matches = [name for name in linears if fnmatchcase(f".{name}", f"*.{pattern}")]
        if not matches:
            ends = sorted({name.split(".")[-1] for name in linears})
            raise ConfigError(f"lora.targets: no linear layer is called {pattern!r}; {nearest(pattern, ends)}")
        found.update(matches)
    if {"head", "head.logits"} & found and model.config.tie_embeddings:
        raise ConfigError("lora.targets: the head is the embedding here (tie_embeddings); choose qkv, out, up, down")
    return [name for name in linears if name in found]


def layers(model: nn.Module) -> dict[str, LoRALinear]:
    """The adapted layers by their dotted names."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Replace the layer with this dotted name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, layer)


def adapter(model: GPT) -> dict[str, Tensor]:
    """The tensors A and B, {"blocks.0.attention.qkv.lora_A": [r, K], ...}; empty without an adapter."""
    return {f"{name}.{part}": getattr(layer, part).detach() for name, layer in layers(model).items() for part in PARTS}


@torch.no_grad()
def load_adapter(model: GPT, tensors: Mapping[str, Tensor], config: LoRAConfig) -> GPT:
    """Give the model this adapter instead of the one it has.

    Raises:
        CheckpointError: the tensors do not fit `config` and this model; the model is unchanged.
        ConfigError: as `add_lora`.
    """
    before = layers(model)
    remove(model)
    try:
        add_lora(model, config)
        own = adapter(model)
        shapes = {name: tuple(tensor.shape) for name, tensor in own.items()}
        given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        if wrong := sorted(name for name in shapes.keys() | given.keys() if shapes.get(name) != given.get(name)):
            name = wrong[0]
            raise CheckpointError(
                f"the adapter does not fit this model: {name} is {given.get(name, 'missing')}, "
                f"not {shapes.get(name, 'there')}" + (f", and {len(wrong) - 1} more" if wrong[1:] else "")
            )
    except (CheckpointError, ConfigError):
        remove(model)
        unmerge(model, before)
        raise
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    return model


def remove(model: GPT) -> GPT:
    """Remove the adapter, in place. The base is as before, and its weights can be trained again."""
    for name, layer in layers(model).items():
        replace(model, name, layer.base())
    return model.requires_grad_(True)


@torch.no_grad()
def merge(model: GPT) -> dict[str, LoRALinear]:
    """Add the adapter to the weights, in place. The model then has plain linear layers, to save or to prepare.

    Rounding changes the last digits of its logits. A float sum cannot be undone, so the base's weights are kept in the
    return value: `unmerge(model, merge(model))` is the adapted model, bit for bit. Drop the return value to free its
    memory.
    """
    replaced = layers(model)
    for name, layer in replaced.items():
        replace(model, name, layer.merged())
    model.requires_grad_(True)
    return replaced


def unmerge(model: GPT, replaced: Mapping[str, LoRALinear]) -> GPT:
    """Restore what `merge` returned: the model has its adapter again, and its base is the same bit for bit."""
    if not replaced:
        return model
    for name, layer in replaced.items():
        replace(model, name, layer.train(model.training))
    model.requires_grad_(False)
    for layer in replaced.values():
        layer.lora_A.requires_grad_(True)
        layer.lora_B.requires_grad_(True)
    return model
