"""The key/value cache of generation: keys and values of earlier positions, kept so that each is computed once."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.config import ModelConfig


class KVCache:
    """Room for `size` positions of every layer, allocated once.

    Args:
        config: the model's shape.
        batch: sequences B.
        size: most positions (default: max_seq_len).
        dtype, device: of the stored keys and values.
    """

    def __init__(
        self,
        config: ModelConfig,
        batch: int = 1,
        size: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ):
        shape = (config.num_layers, batch, config.kv_heads, size or config.max_seq_len, config.head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, KV, S, D], not touched yet
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.tokens: Tensor | None = None  # [B, S], for an input that looks back
        self.length = 0

    def kept_tokens(self) -> Tensor:
        """Room for the ids [B, S] of all positions, made when it is first asked for."""
        if self.tokens is None:
            batch, size = self.keys.shape[1], self.keys.shape[3]
            self.tokens = torch.empty(batch, size, dtype=torch.long, device=self.keys.device)
        return self.tokens

    def select(self, rows: Tensor) -> None:
        """Let row i hold what row rows[i] held: beams that live on, or, longer than B, copies of a prompt."""
        self.tokens = None if self.tokens is None else self.tokens[rows]
        if len(rows) == self.keys.shape[1]:  # in place, and only what is filled
            for held in (self.keys[..., : self.length, :], self.values[..., : self.length, :]):
                held.copy_(held[:, rows])
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def part(self, rows: int, start: int, length: int) -> "KVCache":
        """The first `rows` sequences from position `start` on, `length` of them filled, in the same memory."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, :rows, :, start:], self.values[:, :rows, :, start:]
        part.tokens = None if self.tokens is None else self.tokens[:rows, start:]
        part.length = length
        return part

    def layer(self, index: int) -> "LayerCache":
        """The room of one block."""
        return LayerCache(self, self.keys[index], self.values[index])


class LayerCache(NamedTuple):
    """What one block sees of a cache: views [B, KV, S, D] of its keys and values."""

    whole: KVCache
    keys: Tensor
    values: Tensor

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store [B, KV, T, D] after the positions held; returns all of them, [B, KV, S, D].

        The cache's `length` moves only when the model has done all its layers: see `GPT.hidden`.
        """
        start = self.whole.length
        end = start + key.shape[2]
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]
