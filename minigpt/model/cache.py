"""Keep the keys and values of earlier positions during generation, so that each is computed only once."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor

from minigpt.config import ModelConfig


class KVCache:
    """Space for `size` positions in every layer, allocated once.

    Args:
        config: the model's shape.
        batch: number of sequences, B.
        size: largest number of positions, S (default: max_seq_len).
        dtype, device: dtype and device of the stored keys and values.
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
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # [L, B, KV, S, D], not initialised
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.tokens: Tensor | None = None  # [B, S], for an input layer that reads earlier tokens
        self.length = 0

    def check_room(self, rows: int, end: int) -> None:
        """Raise ValueError unless `rows` sequences of `end` positions fit.

        torch would not: it assigns one position to none. The C kernels would write past the end.
        """
        batch, size = self.keys.shape[1], self.keys.shape[3]
        if rows != batch or end > size:
            raise ValueError(f"{rows} x {end} positions do not fit a cache of {batch} x {size}")

    def kept_tokens(self) -> Tensor:
        """Space for the token ids [B, S] of all positions, allocated at the first call."""
        if self.tokens is None:
            batch, size = self.keys.shape[1], self.keys.shape[3]
            self.tokens = torch.empty(batch, size, dtype=torch.long, device=self.keys.device)
        return self.tokens

    def select(self, rows: Tensor) -> None:
        """Set row i to the old content of row rows[i].

        Beam search keeps the surviving beams this way. If `rows` is longer than B, a prompt is copied to more rows.
        """
        self.tokens = None if self.tokens is None else self.tokens[rows]
        if len(rows) == self.keys.shape[1]:  # in place, and only the filled positions
            for held in (self.keys[..., : self.length, :], self.values[..., : self.length, :]):
                held.copy_(held[:, rows])
        else:
            self.keys, self.values = self.keys[:, rows], self.values[:, rows]

    def part(self, rows: int, start: int, length: int) -> "KVCache":
        """A view of the first `rows` sequences from position `start` on; `length` of its positions are filled."""
        part = copy.copy(self)
        part.keys, part.values = self.keys[:, :rows, :, start:], self.values[:, :rows, :, start:]
        part.tokens = None if self.tokens is None else self.tokens[:rows, start:]
        part.length = length
        return part

    def layer(self, index: int) -> "LayerCache":
        """The part of the cache that belongs to one block."""
        return LayerCache(self, self.keys[index], self.values[index])


class LayerCache(NamedTuple):
    """One block's part of a cache: views [B, KV, S, D] of its keys and values."""

    whole: KVCache
    keys: Tensor
    values: Tensor

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [B, KV, T, D] after the old ones; returns old and new together, [B, KV, S, D].

        This leaves the cache's `length` as it is. The model raises it after the last layer: see `GPT.hidden`.
        """
        start = self.whole.length
        end = start + key.shape[2]
        self.keys[:, :, start:end] = key
        self.values[:, :, start:end] = value
        return self.keys[:, :, :end], self.values[:, :, :end]
