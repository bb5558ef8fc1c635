"""Collect a stream of text and cut it into pieces of about a million characters, so that memory stays small."""

import math
from collections.abc import Callable

CHUNK = 1 << 20
"""Characters to work on at a time: enough to be fast, few enough to need little memory."""


class Cutter:
    """Holds text until there is enough for a piece, and cuts it where a cut does not change the ids.

    Args:
        safe_cut: gives the largest index where a text may be cut, 0 if there is none.
        size: characters of a piece, about.
        longest: a text of this many characters becomes a piece even without a safe cut.
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
        self.goal = max(self.chunk, 2 * self.size)  # without a cut, try again when the text has doubled
        return whole[:cut]

    def end(self, text: str = "") -> str:
        """Take the last text; returns all the text held, and empties the cutter."""
        rest = "".join([*self.held, text])
        self.held, self.size, self.goal = [], 0, self.chunk
        return rest
