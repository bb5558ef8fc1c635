"""Keys and values of earlier chats: the next turn of a chat reads only what is new in it.

A chat's next request repeats all that was said. What its longest common beginning with an earlier text gave is still
right, since no position looks at a later one. Those not used for longest are dropped first.
"""

from collections.abc import Sequence
from itertools import takewhile

from minigpt.serve.engine.batch import Held

TEXTS = 256
"""Beginnings that are looked through for each chat."""


class Prefixes:
    """Beginnings of texts of one model.

    Args:
        most: bytes of all together.
    """

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.kept: list[Held] = []  # used last comes last

    def find(self, ids: Sequence[int]) -> Held | None:
        """The longest beginning of ids that is known; never all of them, since the last must be read again."""
        lengths = {held: _common(held.ids, ids[:-1]) for held in self.kept}
        best = max(lengths, key=lambda held: lengths[held], default=None)
        if best is None or not lengths[best]:
            return None
        self.kept.remove(best)
        self.kept.append(best)
        length = lengths[best]
        return Held(best.ids[:length], best.keys[:, :, :length], best.values[:, :, :length])

    def keep(self, held: Held) -> None:
        """Keep it in place of those that it goes on from."""
        for old in [old for old in self.kept if old.ids == held.ids[: len(old.ids)]]:
            self._drop(old)
        self.kept.append(held)
        self.bytes += held.bytes
        while self.bytes > self.most or len(self.kept) > TEXTS:
            self._drop(self.kept[0])

    def _drop(self, held: Held) -> None:
        self.kept.remove(held)
        self.bytes -= held.bytes


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """How many ids both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
