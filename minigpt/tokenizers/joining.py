"""Join neighbours to tokens by rank, in time n log n, however the ranks are chosen."""

import heapq
from collections.abc import Callable, Sequence
from typing import TypeVar

Part = TypeVar("Part", int, str)


def join(given: Sequence[Part], find: Callable[[Part, Part], tuple[int, Part] | None]) -> list[Part]:
    """Join two neighbours, again and again, until no pair is known. The pair of the lowest rank goes first; of equal
    pairs, the leftmost.

    `find`: two neighbours -> (rank, what they become); None if they are not joined.
    """
    parts: list[Part | None] = list(given)
    after, before = [*range(1, len(parts)), -1], [*range(-1, len(parts) - 1)]
    waiting: list[tuple[int, int, Part, Part, Part]] = []

    def propose(left: int) -> None:
        right = after[left]
        one, two = parts[left], parts[right]
        if right >= 0 and one is not None and two is not None and (found := find(one, two)):
            rank, joined = found
            heapq.heappush(waiting, (rank, left, one, two, joined))

    for left in range(len(parts) - 1):
        propose(left)
    while waiting:
        _, left, one, two, joined = heapq.heappop(waiting)
        right = after[left]
        if right < 0 or parts[left] != one or parts[right] != two:
            continue  # one of them has been joined since
        parts[left], parts[right] = joined, None
        after[left] = after[right]
        if after[left] >= 0:
            before[after[left]] = left
            propose(left)
        if before[left] >= 0:
            propose(before[left])
    return [part for part in parts if part is not None]
