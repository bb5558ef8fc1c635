"""Keep keys and values of earlier chats, so that the next turn of a chat reads only what is new.

A chat's next request repeats everything said so far. The keys and values of its longest common beginning with an
earlier text are still right, since no position looks at a later one. The least recently used ones are dropped first.
"""

from collections.abc import Sequence
from itertools import takewhile

from minigpt.serve.engine.batch import CachedPrefix

TEXTS = 256
"""How many texts are kept and compared with each new chat."""


class Prefixes:
    """Beginnings of texts of one model.

    Args:
        most: largest total size, in bytes.
    """

    def __init__(self, most: int):
        self.most, self.bytes = most, 0
        self.kept: list[CachedPrefix] = []  # the most recently used is last

    def find(self, ids: Sequence[int]) -> CachedPrefix | None:
        """The longest known beginning of ids; never all of them, since the last id must be read again."""
        lengths = {prefix: _common(prefix.ids, ids[:-1]) for prefix in self.kept}
        best = max(lengths, key=lambda prefix: lengths[prefix], default=None)
        if best is None or not lengths[best]:
            return None
        self.kept.remove(best)
        self.kept.append(best)
        length = lengths[best]
        return CachedPrefix(best.ids[:length], best.keys[:, :, :length], best.values[:, :, :length])

    def keep(self, prefix: CachedPrefix) -> None:
        """Keep these keys and values, and drop those whose text they continue."""
        for old in [old for old in self.kept if old.ids == prefix.ids[: len(old.ids)]]:
            self._drop(old)
        self.kept.append(prefix)
        self.bytes += prefix.bytes
        while self.bytes > self.most or len(self.kept) > TEXTS:
            self._drop(self.kept[0])

    def _drop(self, prefix: CachedPrefix) -> None:
        self.kept.remove(prefix)
        self.bytes -= prefix.bytes


def _common(one: Sequence[int], two: Sequence[int]) -> int:
    """The number of ids that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two, strict=False)))
