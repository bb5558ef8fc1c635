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
        texts = "|".join(regex.escape(text) for text in config.stop)
        # two patterns, so that the expression's flags are its own: (?x) may end it with a comment
        self._patterns = [regex.compile(part) for part in (texts, config.stop_regex) if part]
        self._text, self._shown = "", 0  # the second: how many characters were shown
        self.hit = False

    def push(self, text: str) -> str:
        """Add text and return the text that may be shown now."""
        if not self._patterns or self.hit:
            return "" if self.hit else text
        self._text += text
        place = self._first()
        self.hit = place is not None
        return self._release(place if place is not None else self._first(partial=True))

    def flush(self) -> str:
        """Return the text that is still held back, or "" after a hit."""
        return "" if self.hit else self._release()

    def _first(self, partial: bool = False) -> int | None:
        """Where the first match begins, or with `partial` the first that more text could complete."""
        try:
            found = [
                pattern.search(self._text, self._shown, partial=partial, timeout=SECONDS) for pattern in self._patterns
            ]
        except TimeoutError:
            raise GenerationError(f"stop_regex: a search took longer than {SECONDS} s; make it simpler") from None
        return min((match.start() for match in found if match), default=None)

    def _release(self, end: int | None = None) -> str:
        """The text that was not shown yet, up to `end`."""
        start, self._shown = self._shown, len(self._text) if end is None else end
        return self._text[start : self._shown]
