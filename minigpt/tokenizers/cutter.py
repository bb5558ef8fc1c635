"""Collect a stream of text and cut it into pieces of about a million characters, so that memory stays flat."""

import math
from collections.abc import Callable

CHUNK = 1 << 20
"""Characters to work on at a time: long enough to be fast, short enough for memory to stay flat."""


class Cutter:
    """Holds text until there is enough for a piece, and cuts it where that changes nothing.

    Args:
        safe_cut: largest index where a text may be cut, 0 for none.
        size: characters of a piece, about.
        longest: a text of so many characters without a safe cut is one piece all the same.
    """

    def __init__(self, safe_cut: Callable[[str], int], size: int = CHUNK, longest: float = math.inf):
        self.safe_cut, self.chunk, self.longest = safe_cut, size, longest
        self.held: list[str] = []
        self.size, self.goal = 0, size

    def add(self, text: str) -> str:
        """Take more text; returns a piece, or "" while there is none."""
        self.held.append(text)
        self.size += len(text)
        if self.size < self.goal:
            return ""
        whole = "".join(self.held)
        cut = self.safe_cut(whole) or (len(whole) if len(whole) >= self.longest else 0)
        self.held, self.size = [whole[cut:]], len(whole) - cut
        self.goal = max(self.chunk, 2 * self.size)  # no cut: look again when the text has doubled, not at each piece
        return whole[:cut]

    def end(self, text: str = "") -> str:
        """Take the last text; returns all that is held, and holds nothing more."""
        rest = "".join([*self.held, text])
        self.held, self.size, self.goal = [], 0, self.chunk
        return rest
