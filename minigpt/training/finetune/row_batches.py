"""Make batches from rows of tokens. Batch k is a pure function of (rows, seed, k), as for texts (data/batches).

A row holds one record, or with `pack` as many records as fit. Each epoch visits the rows in a new random order. A batch
is as wide as its longest row, rounded up to one of WIDTHS widths, so that there is little padding and compiled code
sees few shapes. Attention is causal, so no token sees the padding on the right.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from minigpt.data.batches import share, spread
from minigpt.model.loss import IGNORE
from minigpt.training.step import Batch

WIDTHS = 4


class Row(NamedTuple):
    """Ids [n], and whether each is learned [n]; the first is never learned, since nothing comes before it."""

    ids: np.ndarray
    learned: np.ndarray


def fit(row: Row, capacity: int) -> Row:
    """The row's last `capacity` tokens; a row that is too long loses the beginning of its prompt first."""
    ids, learned = row.ids[-capacity:], row.learned[-capacity:].copy()
    learned[0] = False
    return Row(ids, learned)


def pack(rows: Sequence[Row], capacity: int) -> list[Row]:
    """Pack rows into few longer rows of at most `capacity` tokens, by best fit, longest first; no row is cut.

    Lengths 5 4 3 2 with capacity 7 -> [5 2] [4 3].
    """
    bins: list[list[Row]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while a bin has room for r tokens; one bit operation finds the smallest room that fits
    for row in sorted(rows, key=lambda row: -len(row.ids)):
        length = len(row.ids)
        fitting = rooms >> length
        room = length + (fitting & -fitting).bit_length() - 1 if fitting else capacity
        if fitting:
            at = by_room[room].pop()
            rooms &= ~(1 << room) if not by_room[room] else -1
        else:
            at = len(bins)
            bins.append([])
        bins[at].append(row)
        by_room[room - length].append(at)
        rooms |= 1 << (room - length)
    return [Row(np.concatenate([r.ids for r in rows]), np.concatenate([r.learned for r in rows])) for rows in bins]


def stack(rows: Sequence[Row], seq_len: int) -> tuple[Tensor, Tensor]:
    """Inputs and targets, int64 [len(rows), T], padded on the right with 0 and -100; T <= seq_len."""
    step = -(-seq_len // WIDTHS)
    longest = max(len(row.ids) for row in rows) - 1
    width = min(seq_len, max(1, -(-longest // step)) * step)
    inputs = torch.zeros(len(rows), width, dtype=torch.long)
    targets = torch.full((len(rows), width), IGNORE)
    for at, (ids, learned) in enumerate(rows):
        tokens = torch.from_numpy(ids.astype(np.int64))
        inputs[at, : len(ids) - 1] = tokens[:-1]
        targets[at, : len(ids) - 1] = torch.where(torch.from_numpy(learned[1:]), tokens[1:], IGNORE)
    return inputs, targets


class RowBatches:
    """Training batches of rows, or of tuples of rows that belong together.

    Args:
        rows: each has 2 to seq_len + 1 tokens.
        batch_size: rows B of a batch, over all ranks.
        seq_len: most tokens T of a row that the model reads.
        seed: seed of the order.
        make: makes a batch from rows; `stack` makes inputs and targets.

    Attributes:
        steps_per_epoch: rows / B, fractional.
        tokens_per_step: tokens of a batch without padding, on average.
    """

    def __init__(
        self, rows: Sequence[Any], batch_size: int, seq_len: int, seed: int, make: Callable[..., Batch] = stack
    ):
        self.rows, self.batch_size, self.seq_len, self.seed = rows, batch_size, seq_len, seed
        self.make = make
        self.steps_per_epoch = len(rows) / batch_size
        flat: list[Row] = [row for item in rows for row in ([item] if isinstance(item, Row) else item)]
        self.tokens_per_step = max(1, round(sum(len(row.ids) - 1 for row in flat) / self.steps_per_epoch))
        self._order = lru_cache(maxsize=2)(partial(_order, seed, len(rows)))  # no cycle, as in data/batches

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """This rank's inputs and targets, int64 [B / world, T]. Raises ConfigError if world does not divide B."""
        rows = [self._row(number) for number in share(self.batch_size, step, rank, world)]
        return self.make(rows, self.seq_len)

    def _row(self, number: int) -> Any:
        epoch, place = divmod(number, len(self.rows))
        return self.rows[int(self._order(epoch)[place])]


def _order(seed: int, rows: int, epoch: int) -> np.ndarray:
    """The order of the rows in an epoch."""
    return np.random.default_rng((seed, epoch)).permutation(rows)


def row_eval_batches(
    rows: Sequence[Any],
    seq_len: int,
    batch_size: int,
    count: int | None = None,
    together: int = 1,
    make: Callable[..., Batch] = stack,
) -> Iterator[Batch]:
    """Every row once, or those that `data.batches.spread` picks: inputs and targets, int64 [<= batch_size, T]."""
    for batch in spread(-(-len(rows) // batch_size), count, together):
        yield make(rows[batch * batch_size : (batch + 1) * batch_size], seq_len)
