"""Find stop texts and a stop expression in a text that arrives in pieces, even if a match spans several pieces."""

import regex

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError

SECONDS = 5
"""Time limit of a search: an expression such as (a|a)*$ could take forever."""


class Stops:
    """Passes text on until a stop matches, and holds back text that could be the beginning of a match.

    All text is kept, since an expression may look back at text that was shown: ^, \\b, (?<=...).

    With the stop "\\n\\n", push("Hi.\\n") returns "Hi.", push("\\nBye") returns "", and `hit` becomes True.

    Args:
        config: its `stop` and `stop_regex` are used.
    """

    def __init__(self, config: GenerationConfig):
        parts = [regex.escape(text) for text in config.stop]
        parts += [f"(?:{config.stop_regex})"] if config.stop_regex else []
        self._pattern = regex.compile("|".join(parts)) if parts else None
        self._text, self._shown = "", 0  # the second: how many characters were shown
        self.hit = False

    def push(self, text: str) -> str:
        """Add text and return the text that may be shown now."""
        if self._pattern is None or self.hit:
            return "" if self.hit else text
        self._text += text
        try:
            if found := self._pattern.search(self._text, self._shown, timeout=SECONDS):
                self.hit = True
                return self._release(found.start())
            begun = self._pattern.search(self._text, self._shown, partial=True, timeout=SECONDS)
        except TimeoutError:
            raise GenerationError(f"stop_regex: a search took longer than {SECONDS} s; make it simpler") from None
        return self._release(begun.start() if begun else len(self._text))

    def flush(self) -> str:
        """Return the text that is still held back, or "" after a hit."""
        return "" if self.hit else self._release(len(self._text))

    def _release(self, end: int) -> str:
        start, self._shown = self._shown, end
        return self._text[start:end]
