"""Turn token ids back into bytes by a table, so that floors need no source file."""

from collections.abc import Iterable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.tokenizers import Tokenizer

Bytes = npt.NDArray[np.uint8]
Ids = npt.NDArray[Any]

CHUNK = 1 << 20  # tokens turned into bytes at a time


class TokenText:
    """The text of a sequence of ids, a chunk at a time.

    Special tokens are not text, so they have no bytes. The exception is unk: it stands for a character of the text and
    becomes one "?". If `<unk>` is itself a word of the text, it stays `<unk>`.

    Args:
        tokenizer: the tokenizer that made the ids.
        chunk: ids turned into bytes at a time.
    """

    def __init__(self, tokenizer: Tokenizer, chunk: int = CHUNK):
        self.chunk = chunk
        pieces = [tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size)]
        if tokenizer.unk_id is not None and not pieces[tokenizer.unk_id]:
            pieces[tokenizer.unk_id] = b"?"
        self.lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)  # [V] bytes of each id
        self._starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))  # [V] where each id's bytes begin in _flat
        self._flat = np.frombuffer(b"".join(pieces), np.uint8)

    def decode(self, ids: Ids) -> Bytes:
        """Bytes of the ids [N].

        Example: pieces 0: b"ab", 1: b"c" give _flat b"abc" and starts [0, 2]. Ids [1, 0] have lengths [1, 2], so their
        output begins at 0 and 1. Output byte i comes from _flat[start of its id + i - where its id begins in the
        output]: [2, 0, 1] -> b"cab".
        """
        ids = ids.astype(np.int64)
        lengths = self.lengths[ids]
        ends = np.cumsum(lengths)
        shift = np.repeat(self._starts[ids] - (ends - lengths), lengths)
        return self._flat[np.arange(len(shift)) + shift]

    def chunks(self, ids: Ids) -> Iterator[Bytes]:
        """Bytes of any number of ids, memory-mapped or not, `chunk` ids at a time."""
        for start in range(0, len(ids), self.chunk):
            yield self.decode(np.asarray(ids[start : start + self.chunk]))

    def whole(self, ids: Ids) -> Bytes:
        """All of the text at once."""
        return self._take(self.chunks(ids), None)

    def head(self, ids: Ids, limit: int) -> Bytes:
        """The first `limit` bytes of the text, or all of it."""
        return self._take(self.chunks(ids), limit)[:limit]

    def spread(self, ids: Ids, limit: int, parts: int = 20) -> Bytes:
        """The beginnings of `parts` equal parts of the text, `limit` bytes in total; all of a shorter text."""
        edges, each = np.linspace(0, len(ids), parts + 1).astype(int), limit // parts
        return np.concatenate([self.head(ids[start:end][:each], each) for start, end in pairwise(edges)])

    def tail(self, ids: Ids, limit: int) -> Bytes:
        """The last `limit` bytes of the text, or all of it."""
        backwards = (
            self.decode(np.asarray(ids[max(0, end - self.chunk) : end])) for end in range(len(ids), 0, -self.chunk)
        )
        return self._take(backwards, limit, backwards=True)[-limit:]

    @staticmethod
    def _take(chunks: Iterable[Bytes], limit: int | None, backwards: bool = False) -> Bytes:
        taken, size = [np.zeros(0, np.uint8)], 0
        for chunk in chunks:
            taken.append(chunk)
            size += len(chunk)
            if limit is not None and size >= limit:
                break
        return np.concatenate(taken[::-1] if backwards else taken)
