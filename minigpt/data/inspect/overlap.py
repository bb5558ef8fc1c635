"""Measure how much of the validation text is also in the training text, which would make its loss too low.

A gram is 13 consecutive words (as in the decontamination of GPT-3: Brown et al., 2020, appendix C), or 50 characters
in languages without spaces between words. Grams are compared by 64-bit hashes. Grams that cross the end of a document
or of a chunk (one in a million characters) are left out.
"""

from collections.abc import Iterable, Iterator
from typing import TypedDict

import numpy as np

from minigpt.data.corpus import CHUNK, Piece

WORDS, CHARACTERS = 13, 50
_LONG_WORD = 20  # a text with longer words on average has no spaces between words
_MULTIPLIER = 0x9E3779B97F4A7C15
_FILTER_BITS = 24


class Grams(TypedDict):
    """The number of grams in val, and the share of them that train has too (None: there are no grams)."""

    unit: str
    grams: int
    seen: int
    share: float | None


def overlap(val: Iterable[Piece], train: Iterable[Piece]) -> Grams:
    """Compare val with train: unit ("13 words" or "50 characters"), grams of val, those seen in train, their share."""
    grams: list[np.ndarray] = []
    by_words = True
    for batch in _batches(val):
        if not grams:
            by_words = sum(map(len, batch)) <= _LONG_WORD * sum(len(text.split()) for text in batch)
        grams.append(_grams(batch, by_words))
    wanted, counts = np.unique(np.concatenate(grams), return_counts=True) if grams else (np.empty(0, np.uint64),) * 2
    unit = f"{WORDS} words" if by_words else f"{CHARACTERS} characters"
    if not len(wanted):
        return {"unit": unit, "grams": 0, "seen": 0, "share": None}
    # most grams of train are not in val: a table of their low bits rejects them before the binary search
    mask = np.uint64((1 << _FILTER_BITS) - 1)
    maybe = np.zeros(1 << _FILTER_BITS, bool)
    maybe[(wanted & mask).astype(np.int64)] = True
    found = np.zeros(len(wanted), bool)
    for batch in _batches(train):
        some = _grams(batch, by_words)
        some = some[maybe[(some & mask).astype(np.int64)]]
        at = np.minimum(np.searchsorted(wanted, some), len(wanted) - 1)
        found[at[wanted[at] == some]] = True
    seen, all_ = int(counts[found].sum()), int(counts.sum())
    return {"unit": unit, "grams": all_, "seen": seen, "share": seen / all_}


def _batches(pieces: Iterable[Piece]) -> Iterator[list[str]]:
    """Group texts to about a million characters, so that numpy is called less often."""
    held, size = [], 0
    for piece in pieces:
        held.append(piece.text)
        size += len(piece.text)
        if size >= CHUNK:
            yield held
            held, size = [], 0
    if held:
        yield held


def _grams(texts: list[str], by_words: bool) -> np.ndarray:
    """Hashes of all grams inside the texts, uint64 [number of grams]."""
    if by_words:
        words = [text.split() for text in texts]
        units = np.fromiter((hash(word) for each in words for word in each), np.int64).astype(np.uint64)
        lengths, n = [len(each) for each in words], WORDS
    else:
        points = np.frombuffer("".join(texts).encode("utf-32-le"), np.uint32)
        units = (points.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD1B54A32D192ED03)
        lengths, n = [len(text) for text in texts], CHARACTERS
    count = len(units) - n + 1
    if count <= 0:
        return np.empty(0, np.uint64)
    grams = np.zeros(count, np.uint64)
    factor = 1
    for offset in range(n):
        grams += units[offset : offset + count] * np.uint64(factor)
        factor = factor * _MULTIPLIER % 2**64
    grams ^= grams >> np.uint64(32)  # mix the high bits into the low ones, which the table uses
    text = np.repeat(np.arange(len(lengths)), lengths)
    return grams[text[:count] == text[n - 1 :]]
