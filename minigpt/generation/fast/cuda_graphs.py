"""Decoding on a CUDA device by graphs: all kernels of one token launched by one call.

A token of a small model is a hundred kernels and more of a few microseconds each, and to launch one from Python takes
longer than that. A CUDA graph records them once and replays them. It does the same to the same memory each time, so
what differs from token to token stands in tensors on the device: the ids, the position, where each row begins.

A graph reads the first S positions of the cache and hides those not written yet. S is a multiple of `SPAN`: one graph
for each length would be a recording for every token, one for the whole context would read all of it for a short text.
"""

import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from minigpt.model import GPT, KVCache
from minigpt.model.cache import LayerCache
from minigpt.model.gpt import read

SPAN = 256
"""Positions by which graphs differ."""
PATIENCE = 2
"""Tokens that a cache gets without a graph: one that is copied at every token (beams that begin) is not worth it."""

Recorded = tuple[Callable[[], None], Tensor]
"""What does a step again, and where its result lies then."""


def record(step: Callable[[], Tensor]) -> Recorded:
    """A CUDA graph of a function that launches kernels only."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries take their memory at the first call, which no graph can hold
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return graph.replay, out


class Replay:
    """The reader of a model on a CUDA device: graphs where a cache gets one more token of each row, else `gpt.read`.

    A model in evaluation mode; one with an input that looks back is not recorded.
    """

    def __init__(self) -> None:
        self.cache: Callable[[], KVCache | None] = lambda: None
        self._forget(())

    def __call__(self, model: GPT, tokens: Tensor, cache: KVCache | None = None, pads: Tensor | None = None) -> Tensor:
        """As `GPT.hidden`: [B, T] -> [B, T, C]."""
        config = model.config
        looks_back = any(getattr(model, name).looks_back for name in model.inputs)
        graph = cache is not None and tokens.shape[1] == 1 and 0 < cache.length < config.max_seq_len
        if cache is None or not graph or looks_back or torch.is_grad_enabled():
            return read(model, tokens, cache, pads)
        held = (model.embedding.weight, cache.keys, cache.values)  # weights may have moved, too
        memory = (*(tensor.data_ptr() for tensor in held), cache.keys.shape, cache.keys.stride())
        if memory != self.memory:
            self._forget(memory)
        if self.cache() is not cache:  # what is hidden is multiplied by zero, which does not help against nan
            for tensor in held[1:]:
                tensor[..., cache.length :, :] = 0
            self.cache = weakref.ref(cache)
        self.count += 1
        if self.count <= PATIENCE:
            return read(model, tokens, cache, pads)
        with torch.inference_mode():
            replay, out = self._graph(model, tokens, cache)
            self.tokens.copy_(tokens)
            self.position.fill_(cache.length)
            if self.padded or pads is not None:
                self.pads.copy_(torch.zeros_like(self.pads) if pads is None else pads)
            self.padded = pads is not None
            replay()
            cache.length += 1
            return out.clone()

    def _forget(self, memory: tuple[object, ...]) -> None:
        """Start again: graphs read the weights and write the cache where they lay."""
        self.memory, self.count, self.padded = memory, 0, False
        self.graphs: dict[int, Recorded] = {}

    def _graph(self, model: GPT, tokens: Tensor, cache: KVCache) -> Recorded:
        """The graph for the cache's next position, recorded if it is the first of its span."""
        if not self.graphs:
            self.tokens, self.position = torch.zeros_like(tokens), tokens.new_zeros(1)
            self.pads = tokens.new_zeros(len(tokens))
        size = min(-(-(cache.length + 1) // SPAN) * SPAN, cache.keys.shape[3])
        if size not in self.graphs:
            self.position.fill_(cache.length)  # recording runs the step, which writes here
            with torch.cuda.device_of(tokens):  # it need not be the current one
                self.graphs[size] = record(lambda: self._step(model, cache, size))
        return self.graphs[size]

    def _step(self, model: GPT, cache: KVCache, size: int) -> Tensor:
        """`GPT.hidden` of one token a row at `position`, which reads no number on the host: [B, 1] -> [B, 1, C]."""
        column = torch.arange(size, device=self.tokens.device)
        seen = (column <= self.position) & (column >= self.pads[:, None])  # [B, S]
        hidden = torch.zeros(seen.shape, dtype=model.compute_dtype, device=seen.device).masked_fill(~seen, -torch.inf)
        places = (self.position - self.pads)[:, None]  # [B, 1]
        x = model.embed(self.tokens, places)
        rotary = model.rotary(places)
        for keys, values, block in zip(cache.keys, cache.values, model.blocks, strict=True):
            x = block(x, rotary, cast(LayerCache, _Place(keys, values, self.position, size)), hidden[:, None, None])
        return model.norm(x)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Replay":
        return Replay()  # a copy records its own


class _Place:
    """What a block sees of a cache in a graph: `LayerCache` with its position on the device."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor, size: int):
        self.keys, self.values, self.position, self.size = keys, values, position, size

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, KV, 1, D] at the position; returns the first `size` of all, [B, KV, S, D]."""
        self.keys.index_copy_(2, self.position, key)
        self.values.index_copy_(2, self.position, value)
        return self.keys[:, :, : self.size], self.values[:, :, : self.size]
