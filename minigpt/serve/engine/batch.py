"""Write several texts with one model; any of them may join or leave between two tokens.

One buffer holds the keys and values of all texts. The newest token of every text is in the same column, `end`, so one
call of the model adds a token to each, as in `generation.engine`. A shorter text begins in a later column:

    columns      0 1 2 3 4 5 6 7 8 ...
    a text       . a b c d e f         <- begins in column 1
    a text       . . . . g h i         <- begins in column 4; `end` is 7

A text that joins is read alone, and its keys and values are put into the columns before `end`. When `end` reaches the
buffer's last column, all columns move back. So a text is the same as if it were alone: it is read alone, also when its
window moves (`window_start`), and in a step no row looks at another.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minigpt.generation.engine import window_start
from minigpt.model import GPT, KVCache


@dataclass(eq=False)
class Text:
    """A text that grows.

    Attributes:
        ids: all of it, the prompt first; the newest id has not been read yet.
        start: the first position that the model reads, as `window_start` says.
        column: the column of that position in the buffer.
    """

    ids: list[int]
    start: int
    column: int


@dataclass(frozen=True, eq=False)
class CachedPrefix:
    """Keys and values [L, KV, T, D] of the first T tokens of a text; reading can continue from there."""

    ids: tuple[int, ...]
    keys: Tensor
    values: Tensor

    @property
    def bytes(self) -> int:
        """Bytes of memory."""
        return self.keys.nbytes + self.values.nbytes


class Batch:
    """The texts, and the buffer.

    Args:
        model: in evaluation mode.
        most: texts at once.
    """

    def __init__(self, model: GPT, most: int):
        self.model, self.most = model, most
        self.context = model.config.max_seq_len
        self.texts: list[Text] = []  # text i is row i of the buffer
        self.buffer: KVCache | None = None
        self.end = self.context  # leaves room for any prompt before it
        self.size = self.context + max(64, self.context // 2)

    @torch.inference_mode()
    def join(self, ids: Sequence[int], prefix: CachedPrefix | None = None) -> tuple[Text, Tensor]:
        """Add a text. Returns it, and the hidden states [T, C] of the ids that were read: all, or those after
        `prefix`.
        """
        text = Text(list(ids), window_start(len(ids), self.context), 0)
        cache, hidden = self._read(text, prefix)
        if self.buffer is None:
            self.buffer = KVCache(self.model.config, self.most, self.size, cache.keys.dtype, cache.keys.device)
            self.buffer.kept_tokens()
        self.texts.append(text)
        self._put(len(self.texts) - 1, cache)
        return text, hidden

    @torch.inference_mode()
    def step(self) -> Tensor:
        """Read the newest token of every text; returns the logits [B, V] of the next token."""
        assert self.buffer is not None
        if self.end == self.size:
            self._move_back()
        moved = [row for row, text in enumerate(self.texts) if window_start(len(text.ids), self.context) != text.start]
        for row in moved:  # its result in the step below is thrown away
            text = self.texts[row]
            text.start = window_start(len(text.ids), self.context)
            text.column = self.end + 1 - (len(text.ids) - text.start)
        device, columns = self.buffer.keys.device, [text.column for text in self.texts]
        first = min(columns)
        pads = torch.tensor(columns, device=device) - first if max(columns) > first else None
        tokens = torch.tensor([text.ids[-1:] for text in self.texts], device=device)  # [B, 1]
        hidden = self.model.hidden(tokens, self.buffer.part(len(columns), first, self.end - first), pads)[:, -1]
        self.end += 1
        logits = self.logits(hidden)
        for row in moved:
            cache, alone = self._read(self.texts[row])
            self._put(row, cache)
            logits[row] = self.logits(alone[-1:])[0]
        return logits

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] from hidden states [..., C]."""
        return self.model.head(hidden)[..., : self.model.config.vocab_size]

    def cached_prefix(self, text: Text) -> CachedPrefix | None:
        """A copy of a text's keys and values in the buffer; None if its beginning is no longer there."""
        if text.start or self.buffer is None:
            return None
        row, columns = self.texts.index(text), slice(text.column, self.end)
        keys, values = self.buffer.keys[:, row, :, columns], self.buffer.values[:, row, :, columns]
        return CachedPrefix(tuple(text.ids[: keys.shape[2]]), keys.clone(), values.clone())

    def leave(self, text: Text) -> None:
        """Remove a text; the last row takes its place. Removing the only text frees the buffer."""
        row, last = self.texts.index(text), self.texts.pop()
        if not self.texts or self.buffer is None:
            self.buffer, self.end = None, self.context
        elif last is not text:
            self.texts[row] = last
            for held in (self.buffer.keys, self.buffer.values):
                held[:, row, :, last.column : self.end] = held[:, len(self.texts), :, last.column : self.end]
            tokens = self.buffer.kept_tokens()
            tokens[row, last.column : self.end] = tokens[len(self.texts), last.column : self.end]

    def _read(self, text: Text, prefix: CachedPrefix | None = None) -> tuple[KVCache, Tensor]:
        """Read a text alone: its cache of one row, and the hidden states [T, C] after `prefix`."""
        cache, ids = self.model.make_cache(), torch.tensor([text.ids[text.start :]])  # [1, T]
        ids = ids.to(cache.keys.device)
        cache.kept_tokens()[:, : ids.shape[1]] = ids
        if prefix is not None:
            cache.length = len(prefix.ids)
            cache.keys[:, 0, :, : cache.length], cache.values[:, 0, :, : cache.length] = prefix.keys, prefix.values
        return cache, self.model.hidden(ids[:, cache.length :], cache)[0]

    def _put(self, row: int, cache: KVCache) -> None:
        """Copy a cache of one row into the columns before `end`."""
        assert self.buffer is not None
        text, length = self.texts[row], cache.length
        text.column = self.end - length
        for held, read in ((self.buffer.keys, cache.keys), (self.buffer.values, cache.values)):  # [L, B, KV, S, D]
            # these columns are hidden, but a kernel multiplies them by zero, which would keep NaN
            held[:, row, :, : text.column] = 0
            held[:, row, :, text.column : self.end] = read[:, 0, :, :length]
        self.buffer.kept_tokens()[row, text.column : self.end] = cache.kept_tokens()[0, :length]

    def _move_back(self) -> None:
        """Move all columns back, so that `end` is where it started."""
        assert self.buffer is not None
        rows, first = len(self.texts), min(text.column for text in self.texts)
        by = self.end - self.context
        for layer in (*self.buffer.keys, *self.buffer.values):  # [B, KV, S, D]
            layer[:rows, :, first - by : self.context] = layer[:rows, :, first : self.end].clone()
        tokens = self.buffer.kept_tokens()
        tokens[:rows, first - by : self.context] = tokens[:rows, first : self.end].clone()
        for text in self.texts:
            text.column -= by
        self.end = self.context
