"""Scale or switch off parts of a model for a while, to see their effect. Hooks do it, and are removed afterwards."""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.model.parts import Block


@contextmanager
def scaled(model: GPT, factors: Mapping[str, float]) -> Iterator[None]:
    """Inside the `with` block, multiply what parts add to the residual stream by a factor; 0 switches a part off.

    with scaled(model, {"head 1.3": 0, "feed-forward 0": 0.5}):  # head 3 of layer 1; all of a feed-forward part
        recording = record(model, ids)

    Args:
        model: is the same again after the block.
        factors: part -> factor. A part is "head LAYER.HEAD", "attention LAYER" or "feed-forward LAYER", counted from 0.

    Raises:
        UserError: the model does not have such a part.
    """
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    by_head = {layer: torch.ones(model.config.num_heads) for layer in range(len(blocks))}
    whole: dict[tuple[str, int], float] = {}
    for name, factor in factors.items():
        found = re.fullmatch(r"(head|attention|feed-forward) (\d{1,6})(?:\.(\d{1,6}))?", name)
        kind, layer, head = (found[1], int(found[2]), found[3]) if found else ("", -1, None)
        inside = 0 <= layer < len(blocks) and (kind == "head") == (head is not None)
        if not inside or int(head or 0) >= model.config.num_heads:
            raise UserError(f"this model has no part {name!r}; name one such as 'head 0.1' or 'feed-forward 0'")
        if head is None:
            whole[kind, layer] = factor
        else:
            by_head[layer][int(head)] = factor
    hooks = []
    try:
        for layer, block in enumerate(blocks):
            if (by_head[layer] != 1).any():
                hooks.append(block.attention.out.register_forward_pre_hook(_per_head(by_head[layer])))
            for kind, part in (("attention", block.attention), ("feed-forward", block.feed_forward)):
                if (kind, layer) in whole:
                    hooks.append(part.register_forward_hook(_all_of_it(whole[kind, layer])))
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _per_head(factors: Tensor) -> Callable[..., Any]:
    def scale(_: object, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        mixed = args[0]  # [B, T, H D]
        each = factors.to(mixed).repeat_interleave(mixed.shape[-1] // len(factors))
        return (mixed * each, *args[1:])

    return scale


def _all_of_it(factor: float) -> Callable[..., Any]:
    def scale(_: object, __: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return out * factor

    return scale
