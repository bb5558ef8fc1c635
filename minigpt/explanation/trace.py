"""What passes through a model during one call, kept for looking at.

Notable: the model is neither changed nor written again. The stream after each part is what the next norm reads, so
hooks on the norms see all of it; each attention's kernel is wrapped, so that queries and keys are those it really
compares, normalised and rotated. A model with a merged adapter, unpacked from int4 or made ready for decoding is
traced alike, since it keeps these parts; of a compiled view, trace the model that it was made from.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from minigpt.model import GPT, reference
from minigpt.model.parts import Block
from minigpt.runtime.device import evaluating


@dataclass
class Trace:
    """What the parts of L blocks read and wrote, in order."""

    stream: list[Tensor] = field(default_factory=list)
    """2 L + 1 of [B, T, C]: the residual stream after the embedding, then after each attention and feed-forward."""
    normed: list[Tensor] = field(default_factory=list)
    """2 L + 1 of [B, T, C]: what the norms made of it; the last is what the head reads."""
    queries: list[Tensor] = field(default_factory=list)
    """L of [B, H, T, D]."""
    keys: list[Tensor] = field(default_factory=list)
    """L of [B, KV, T, D]."""
    values: list[Tensor] = field(default_factory=list)
    """L of [B, KV, T, D]."""
    mixed: list[Tensor] = field(default_factory=list)
    """L of [B, H, T, D]: the values, mixed by the attention weights."""
    hidden: list[Tensor] = field(default_factory=list)
    """L of [B, T, F]: inside the feed-forward parts, after the non-linearity."""

    def weights(self, layer: int) -> Tensor:
        """Attention weights [B, H, T, T] of a layer, fp32; row t is how position t divides its look back.

        What `reference.attention` gives for the queries and keys where the value of each position is a unit vector.
        """
        query, key = self.queries[layer].float(), self.keys[layer].float()
        batch, heads, length, _ = key.shape
        units = torch.eye(length, device=key.device).expand(batch, heads, length, length)
        return reference.attention(query, key, units)


@contextmanager
def traced(model: GPT) -> Iterator[Trace]:
    """Keep what passes through the model inside the block, without gradients and dropout.

    with traced(model) as trace:
        logits = model(tokens)  # once, tokens [B, T]
    """
    trace = Trace()
    blocks = [module for module in model.modules() if isinstance(module, Block)]
    norms: list[nn.Module] = [*(norm for block in blocks for norm in (block.norm1, block.norm2)), model.norm]

    def keep_norm(_: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        trace.stream.append(args[0])
        trace.normed.append(out)

    hooks = [norm.register_forward_hook(keep_norm) for norm in norms]
    downs = [block.feed_forward.down for block in blocks]
    hooks += [down.register_forward_pre_hook(lambda _, args: trace.hidden.append(args[0])) for down in downs]
    kernels = [block.attention.kernel for block in blocks]
    for block in blocks:
        block.attention.kernel = _keeping(block.attention.kernel, trace)
    try:
        with torch.no_grad(), evaluating(model):
            yield trace
    finally:
        for hook in hooks:
            hook.remove()
        for block, kernel in zip(blocks, kernels, strict=True):
            block.attention.kernel = kernel


def _keeping(kernel: Any, trace: Trace) -> Any:
    """The kernel, which also leaves what it reads and gives in the trace."""

    def keep(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        trace.queries.append(query)
        trace.keys.append(key)
        trace.values.append(value)
        trace.mixed.append(kernel(query, key, value, *rest))
        return trace.mixed[-1]

    return keep
