"""Decode on a CUDA device with CUDA graphs, which launch all kernels of one token in one call.

One token of a small model takes over a hundred kernels of a few microseconds each. Launching a kernel from Python takes
longer than that. A CUDA graph records the kernels once and replays them. A replay does the same work on the same memory
each time. So everything that changes from token to token is in tensors on the device: the ids, the position, and where
each row begins.

A graph reads the first S positions of the cache and masks those not written yet. S is a multiple of `SPAN`. One graph
per length would have to be recorded at every token; one graph for the whole context would read all of it even for a
short text.
"""

import threading
import weakref
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from minigpt.model import GPT, KVCache
from minigpt.model.cache import LayerCache
from minigpt.model.gpt import read

SPAN = 256
"""One graph is recorded per cache length, rounded up to a multiple of this."""
PATIENCE = 2
"""This many tokens of a cache run without a graph: a cache that is copied at every token (new beams) needs none."""

Recorded = tuple[Callable[[], None], Tensor]
"""The function that replays a step, and the tensor that then has its result."""


def record(step: Callable[[], Tensor]) -> Recorded:
    """Record a CUDA graph of a function that only launches kernels."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):  # libraries allocate memory at their first call, which a graph cannot record
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may allocate memory meanwhile
        out = step()
    return graph.replay, out


class Replay:
    """The reader of a model on a CUDA device. It replays a graph when each row gets one more token, else `gpt.read`.

    The model must be in evaluation mode. If it has an input that reads earlier tokens, no graph is recorded. Several
    threads may use it, one at a time: a server searches beams in one thread while it writes texts in another.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cache: Callable[[], KVCache | None] = lambda: None
        self._forget(())

    def __call__(self, model: GPT, tokens: Tensor, cache: KVCache | None = None, pads: Tensor | None = None) -> Tensor:
        """Same as `GPT.hidden`: [B, T] -> [B, T, C]."""
        looks_back = any(getattr(model, name).looks_back for name in model.inputs)
        graph = cache is not None and tokens.shape[1] == 1 and 0 < cache.length < model.config.max_seq_len
        if cache is None or not graph or looks_back or torch.is_grad_enabled():
            return read(model, tokens, cache, pads)
        cache.check_room(len(tokens), cache.length + 1)
        with self.lock:
            return self._next(model, tokens, cache, pads)

    def _next(self, model: GPT, tokens: Tensor, cache: KVCache, pads: Tensor | None) -> Tensor:
        held = (model.embedding.weight, cache.keys, cache.values)  # weights may have moved too
        memory = (*(tensor.data_ptr() for tensor in held), cache.keys.shape, cache.keys.stride())
        if memory != self.memory:
            self._forget(memory)
        if self.cache() is not cache:  # masked positions are multiplied by 0, but 0 x NaN is NaN
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
        """Drop all graphs: they use the old addresses of the weights and the cache."""
        self.memory, self.count, self.padded = memory, 0, False
        self.graphs: dict[int, Recorded] = {}

    def _graph(self, model: GPT, tokens: Tensor, cache: KVCache) -> Recorded:
        """Return the graph for the cache's next position; record it if there is none for this length yet."""
        if not self.graphs:
            self.tokens, self.position = torch.zeros_like(tokens), tokens.new_zeros(1)
            self.pads = tokens.new_zeros(len(tokens))
        size = min(-(-(cache.length + 1) // SPAN) * SPAN, cache.keys.shape[3])
        if size not in self.graphs:
            self.position.fill_(cache.length)  # recording runs the step, which writes to this position
            with torch.cuda.device_of(tokens):  # this device may not be the current one
                self.graphs[size] = record(lambda: self._step(model, cache, size))
        return self.graphs[size]

    def _step(self, model: GPT, cache: KVCache, size: int) -> Tensor:
        """`GPT.hidden` of one token per row at `position`, without reading a number on the CPU: [B, 1] -> [B, 1, C]."""
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
    """One block's part of a cache inside a graph: a `LayerCache` whose position is a tensor on the device."""

    def __init__(self, keys: Tensor, values: Tensor, position: Tensor, size: int):
        self.keys, self.values, self.position, self.size = keys, values, position, size

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, KV, 1, D] at the position; returns the first `size` positions, [B, KV, S, D]."""
        self.keys.index_copy_(2, self.position, key)
        self.values.index_copy_(2, self.position, value)
        return self.keys[:, :, : self.size], self.values[:, :, : self.size]
