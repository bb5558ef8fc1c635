"""Turn a stream of ids into text, one whole UTF-8 character at a time."""

import codecs

from minigpt.tokenizers.base import Tokenizer


class TextStream:
    """Takes ids one by one, and returns text as soon as its characters are complete.

    stream.push(a) + stream.push(b) + ... + stream.flush() == tokenizer.decode([a, b, ...])

    An emoji is four bytes, so up to four tokens: the first three pushes return "", the last the emoji.
    Invalid UTF-8 bytes become U+FFFD as soon as it is certain that they are invalid.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id_: int) -> str:
        """The text that this token completes; "" while a character is incomplete."""
        return self._decoder.decode(self._tokenizer.shown(int(id_), self._skip_special))

    def flush(self) -> str:
        """The rest at the end: U+FFFD for an incomplete character, else "". The stream can then be used again."""
        return self._decoder.decode(b"", final=True)
