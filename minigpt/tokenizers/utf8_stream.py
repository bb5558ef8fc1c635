"""Turn ids that come one by one into text, a whole UTF-8 character at a time."""

import codecs

from minigpt.tokenizers.base import Tokenizer


class TextStream:
    """Ids in, one by one; text out as soon as its characters are complete.

    stream.push(a) + stream.push(b) + ... + stream.flush() == tokenizer.decode([a, b, ...])

    An emoji is four bytes, so up to four tokens: the first three pushes return "", the last the emoji.
    Bytes that cannot become UTF-8 any more are emitted as U+FFFD as soon as that is certain.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, id_: int) -> str:
        """Text that this token completes; "" while a character is open."""
        return self._decoder.decode(self._tokenizer.shown(int(id_), self._skip_special))

    def flush(self) -> str:
        """What is left at the end (U+FFFD for an open character, else ""); the stream may then be used again."""
        return self._decoder.decode(b"", final=True)
