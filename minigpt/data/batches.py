"""Make batches from token files. Batch k is a pure function of (tokens, seed, k, rank), so resuming needs no state.

Training. In each epoch the tokens after a random shift are cut into adjacent windows of seq_len, so the cuts differ
from epoch to epoch. The windows are visited in a random order, each once. The n-th sequence since the start of training
is window order[n mod W] of epoch n // W. Batch k has the sequences k B .. (k+1) B - 1, and rank r of R has the r-th of
R equal slices of it. So the ranks' batches, joined in order, are the same batch for any number of ranks.

    W = (N - T) // T windows of N tokens (at least 1). Fewer than 2 T tokens at both ends are left over; they differ
    from epoch to epoch.

Evaluation. Windows start at the first token and are `stride` apart. Each target is scored once, in the first window
that contains it; in later windows it is -100. If only some batches are evaluated, they are spread over the whole text,
since its beginning may be easier.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from torch import Tensor

from minigpt.console import counted
from minigpt.errors import ConfigError, DataError

IGNORE = -100
"""A target that is not counted: torch's convention, as in minigpt.model.loss."""


class Batches:
    """Training batches.

    Args:
        tokens: ids [N], an array or a memory map.
        batch_size: sequences per batch over all ranks, B.
        seq_len: tokens per sequence, T.
        seed: seed of the order and the shifts.

    Attributes:
        windows: sequences per epoch, W.
        steps_per_epoch: W / B, a float.
        tokens_per_step: B x T.

    Raises:
        DataError: fewer than T + 1 tokens.
    """

    def __init__(self, tokens: np.ndarray, batch_size: int, seq_len: int, seed: int):
        if len(tokens) < seq_len + 1:
            raise DataError(
                f"the training text has {counted(len(tokens), 'token')}, but one window needs {seq_len + 1:,}; give "
                f"more text, or set --model.max-seq-len {max(1, len(tokens) // 2)}"
            )
        self.tokens, self.batch_size, self.seq_len, self.seed = tokens, batch_size, seq_len, seed
        self.windows = max(1, (len(tokens) - seq_len) // seq_len)
        self.steps_per_epoch = self.windows / batch_size
        self.tokens_per_step = batch_size * seq_len
        spare = len(tokens) - 1 - self.windows * seq_len  # a window needs one more token, the last target
        # A batch may belong to two epochs. The cache does not refer to self: a cycle would keep the token file open
        # until Python collects garbage.
        self._epoch = lru_cache(maxsize=2)(partial(_epoch, seed, self.windows, spare))

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, int64 [B / world, T]. The targets are the next tokens of the inputs.

        Raises:
            ConfigError: batch_size is not a multiple of the number of ranks.
        """
        starts = np.array([self._start(n) for n in share(self.batch_size, step, rank, world)])
        rows = _gather(self.tokens, starts, self.seq_len + 1)
        return rows[:, :-1], rows[:, 1:]

    def _start(self, sequence: int) -> int:
        """Index of the first token of the n-th sequence since the start of training."""
        epoch, place = divmod(sequence, self.windows)
        shift, order = self._epoch(epoch)
        return shift + int(order[place]) * self.seq_len


def _epoch(seed: int, windows: int, spare: int, epoch: int) -> tuple[int, np.ndarray]:
    """(shift, order of the windows) of an epoch; the shift is at most `spare`."""
    rng = np.random.default_rng((seed, epoch))
    shift = int(rng.integers(spare + 1))
    # the order of rng.permutation(W), in half of its memory: a text of 20 GB has 80 million windows of 256 bytes
    order = np.arange(windows, dtype=np.min_scalar_type(windows))
    rng.shuffle(order)
    return shift, order


def share(batch_size: int, step: int, rank: int, world: int) -> range:
    """Numbers of the sequences, since the start of training, that a rank has in a step's batch.

    share(8, 1, 1, 2) -> range(12, 16)

    Raises:
        ConfigError: batch_size is not a multiple of the number of ranks.
    """
    if batch_size % world:
        raise ConfigError(f"train.batch_size: {batch_size} is not a multiple of the {world} ranks")
    each = batch_size // world
    first = step * batch_size + rank * each
    return range(first, first + each)


def spread(total: int, count: int | None = None, together: int = 1) -> Sequence[int]:
    """Choose `count` of `total` batches, in groups of `together` that are evenly spread. None chooses all.

    spread(12, 4, 2) -> [0, 1, 6, 7]. A group has the rows of one larger batch, so the chosen rows do not depend on how
    many rows are in a batch.
    """
    if count is None or count >= total:
        return range(total)
    runs, wanted = -(-total // together), max(1, count // together)
    firsts = [run * runs // wanted * together for run in range(wanted)]
    return [batch for first in firsts for batch in range(first, min(first + together, total))]


def eval_batches(
    tokens: np.ndarray, seq_len: int, stride: int, batch_size: int, count: int | None = None, together: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield inputs and targets, int64 [<= batch_size, seq_len], that score every token except the first exactly once.

    stride = seq_len is fastest. A smaller stride gives each token at least seq_len - stride tokens of context, except
    in the first window. Targets that were scored before, and the padding of the last rows, are -100. With several ranks
    take every R-th batch: itertools.islice(eval_batches(...), rank, None, world). `count` and `together`: see `spread`.

    Raises:
        DataError: fewer than two tokens.
        ConfigError: stride is not in 1..seq_len.
    """
    if not 1 <= stride <= seq_len:
        raise ConfigError(f"stride: {stride} is not in 1..{seq_len}, the context; a larger one would skip tokens")
    if len(tokens) < 2:
        raise DataError(f"the text has {counted(len(tokens), 'token')}, and needs at least 2; give more text")
    targets_in_all = len(tokens) - 1
    rows = 1 + max(0, -(-(targets_in_all - seq_len) // stride))
    columns = np.arange(seq_len)
    for batch in spread(-(-rows // batch_size), count, together):
        starts = np.arange(batch * batch_size, min((batch + 1) * batch_size, rows)) * stride
        inputs = _gather(tokens, starts, seq_len)
        targets = _gather(tokens, starts + 1, seq_len)
        outside = starts[:, None] + columns >= targets_in_all
        scored_before = (columns < seq_len - stride) & (starts[:, None] > 0)
        inputs[torch.from_numpy(outside)] = 0
        targets[torch.from_numpy(outside | scored_before)] = IGNORE
        yield inputs, targets


def windows(tokens: np.ndarray, seq_len: int, stride: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the windows of `eval_batches` one by one, int64 [<= seq_len], without padding."""
    for at, (inputs, targets) in enumerate(eval_batches(tokens, seq_len, stride, 1)):
        length = min(seq_len, len(tokens) - 1 - at * stride)
        yield inputs[0, :length], targets[0, :length]


def _gather(tokens: np.ndarray, starts: np.ndarray, length: int) -> Tensor:
    """Rows tokens[start : start + length], int64 [len(starts), length]. After the end the last token is repeated."""
    at = np.minimum(starts[:, None] + np.arange(length), len(tokens) - 1)
    return torch.from_numpy(np.asarray(tokens[at]).astype(np.int64))
