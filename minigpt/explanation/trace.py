"""Record the tensors that pass through a model during one call.

This needs no second implementation of the model. The next norm reads the residual stream after each part, so hooks on
the norms see the whole stream. Each attention kernel is wrapped, so the recorded queries and keys are those that it
really compares, normalised and rotated. This also works for models with a merged adapter, unpacked from int4 or
prepared for decoding, since they keep these parts. It does not work for a compiled model: trace the original instead.
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
    """The tensors that the parts of L blocks read and wrote, in order."""

    stream: list[Tensor] = field(default_factory=list)
    """2 L + 1 of [B, T, C]: the residual stream after the embedding, then after each attention and feed-forward."""
    normed: list[Tensor] = field(default_factory=list)
    """2 L + 1 of [B, T, C]: the outputs of the norms; the head reads the last one."""
    queries: list[Tensor] = field(default_factory=list)
    """L of [B, H, T, D]."""
    keys: list[Tensor] = field(default_factory=list)
    """L of [B, KV, T, D]."""
    values: list[Tensor] = field(default_factory=list)
    """L of [B, KV, T, D]."""
    mixed: list[Tensor] = field(default_factory=list)
    """L of [B, H, T, D]: the outputs of the heads (values, averaged by the attention weights)."""
    hidden: list[Tensor] = field(default_factory=list)
    """L of [B, T, F]: the hidden vectors of the feed-forward parts, after the activation."""

    def weights(self, layer: int) -> Tensor:
        """Attention weights [B, H, T, T] of a layer, in fp32; row t has the weights of position t on positions 0 to t.

        They come from `reference.attention`, with a unit vector as the value of each position.
        """
        query, key = self.queries[layer].float(), self.keys[layer].float()
        batch, heads, length, _ = key.shape
        units = torch.eye(length, dtype=key.dtype, device=key.device).expand(batch, heads, length, length)
        return reference.attention(query, key, units)


@contextmanager
def traced(model: GPT) -> Iterator[Trace]:
    """Record the model's next call inside the `with` block, without gradients and dropout.

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
    """Wrap a kernel so that it also stores its inputs and its output in the trace."""

    def keep(query: Tensor, key: Tensor, value: Tensor, *rest: Any) -> Tensor:
        trace.queries.append(query)
        trace.keys.append(key)
        trace.values.append(value)
        trace.mixed.append(kernel(query, key, value, *rest))
        return trace.mixed[-1]

    return keep
