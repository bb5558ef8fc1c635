"""Count ids in token files block by block, so that memory does not grow with the text."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

BLOCK = 1 << 20
"""Ids in memory at a time."""


def blocks(tokens: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """The tokens [N], which may be memory-mapped, in parts of at most BLOCK."""
    return (tokens[start : start + BLOCK] for start in range(0, len(tokens), BLOCK))


def token_counts(tokens: npt.NDArray[Any], size: int) -> npt.NDArray[np.int64]:
    """How often each id below `size` is among the tokens [N]: [size]."""
    counts = np.zeros(size, np.int64)
    for block in blocks(tokens):
        counts += np.bincount(block, minlength=size)  # makes eight bytes of each id
    return counts


def holds(tokens: npt.NDArray[Any], id_: int) -> bool:
    """Whether an id is among the tokens [N]."""
    return any(bool((block == id_).any()) for block in blocks(tokens))


def used_ids(tokens: npt.NDArray[Any], size: int, most: int) -> npt.NDArray[np.bool_] | None:
    """Which ids below `size` are among the tokens [N]: [size]. None as soon as more than `most` are found."""
    used = np.zeros(size, np.bool_)
    for block in blocks(tokens):
        used[block] = True
        if np.count_nonzero(used) > most:
            return None
    return used
