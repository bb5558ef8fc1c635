"""Stop texts and a stop expression, found in a text that comes piece by piece, also across the pieces' borders."""

import regex

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError

SECONDS = 5
"""An expression such as (a|a)*$ can take for ever."""


class Stops:
    """Lets text through until a stop matches; what may still become a match is held back.

    With the stop "\\n\\n", pushes of "Hi.\\n" and "\\nBye" give "Hi." and "", and `hit` is true.

    Args:
        config: its `stop` and `stop_regex`.
    """

    def __init__(self, config: GenerationConfig):
        parts = [regex.escape(text) for text in config.stop]
        parts += [f"(?:{config.stop_regex})"] if config.stop_regex else []
        self._pattern = regex.compile("|".join(parts)) if parts else None
        self._held = ""
        self.hit = False

    def push(self, text: str) -> str:
        """What may be shown now."""
        if self._pattern is None or self.hit:
            return "" if self.hit else text
        self._held += text
        try:
            if found := self._pattern.search(self._held, timeout=SECONDS):
                self.hit = True
                return self._release(found.start())
            begun = self._pattern.search(self._held, partial=True, timeout=SECONDS)
        except TimeoutError:
            raise GenerationError(f"stop_regex: looks for longer than {SECONDS} s in a text; make it simpler") from None
        return self._release(begun.start() if begun else len(self._held))

    def flush(self) -> str:
        """What was held back in vain; nothing after a hit."""
        return "" if self.hit else self._release(len(self._held))

    def _release(self, count: int) -> str:
        shown, self._held = self._held[:count], self._held[count:]
        return shown
