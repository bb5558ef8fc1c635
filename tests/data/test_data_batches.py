"""Test that batches are pure functions of (seed, step, rank), and cover each epoch and score each token once."""

import gc
import tracemalloc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minigpt.console import counted
from minigpt.data import Batches, eval_batches, windows
from minigpt.data.batches import spread
from minigpt.data.token_file import TokenFile, TokenWriter
from minigpt.errors import ConfigError, DataError
from minigpt.model.loss import IGNORE
from minigpt.training.finetune.row_batches import Row, RowBatches

shapes = st.tuples(st.integers(1, 12), st.integers(0, 200), st.integers(1, 7)).map(
    lambda drawn: (drawn[0], drawn[0] + 1 + drawn[1], drawn[2])
)  # (seq_len, tokens, batch_size)


def ids(count: int) -> np.ndarray:
    return np.arange(1000, 1000 + count, dtype=np.uint16)  # an id gives its position


@given(shapes, st.integers(0, 2**32), st.integers(0, 50))
def test_targets_are_the_next_tokens(shape: tuple[int, int, int], seed: int, step: int) -> None:
    seq_len, count, batch_size = shape
    inputs, targets = Batches(ids(count), batch_size, seq_len, seed).batch(step)
    assert inputs.shape == targets.shape == (batch_size, seq_len)
    assert inputs.dtype == targets.dtype == torch.int64
    places = inputs - 1000
    assert bool((places[:, 1:] == places[:, :-1] + 1).all())
    assert bool((targets == inputs + 1).all())
    assert int(targets.max()) - 1000 < count


@given(shapes, st.integers(0, 1000))
def test_an_epoch_visits_each_window_once_and_no_token_twice(shape: tuple[int, int, int], seed: int) -> None:
    seq_len, count, batch_size = shape
    batches = Batches(ids(count), batch_size, seq_len, seed)
    epochs = 3
    steps = -(-epochs * batches.windows // batch_size)
    rows = torch.cat([batches.batch(step)[1] for step in range(steps)])
    for epoch in range(epochs):
        seen = rows[epoch * batches.windows : (epoch + 1) * batches.windows].flatten() - 1000
        assert len(seen.unique()) == len(seen) == batches.windows * seq_len
        assert int(seen.max()) - int(seen.min()) == len(seen) - 1  # the windows are adjacent
        assert count - 1 - len(seen) < 2 * seq_len
    assert batches.steps_per_epoch == batches.windows / batch_size
    assert batches.tokens_per_step == batch_size * seq_len


@given(shapes, st.integers(0, 1000), st.integers(0, 40), st.integers(1, 6))
def test_the_ranks_batches_together_are_the_batch(
    shape: tuple[int, int, int], seed: int, step: int, world: int
) -> None:
    seq_len, count, batch_size = shape
    batches = Batches(ids(count), batch_size * world, seq_len, seed)
    alone = batches.batch(step)
    parts = [Batches(ids(count), batch_size * world, seq_len, seed).batch(step, r, world) for r in range(world)]
    assert all(part[0].shape == (batch_size, seq_len) for part in parts)
    for side in (0, 1):
        assert torch.equal(torch.cat([part[side] for part in parts]), alone[side])


@given(shapes, st.integers(0, 1000), st.lists(st.integers(0, 60), min_size=1, max_size=8))
def test_a_batch_does_not_depend_on_those_asked_for_before(
    shape: tuple[int, int, int], seed: int, steps: list[int]
) -> None:
    seq_len, count, batch_size = shape
    used = Batches(ids(count), batch_size, seq_len, seed)
    for step in steps:
        fresh = Batches(ids(count), batch_size, seq_len, seed)
        assert torch.equal(used.batch(step)[0], fresh.batch(step)[0])


def test_order_and_borders_differ_from_epoch_to_epoch_and_with_the_seed() -> None:
    def starts(seed: int, epoch: int) -> list[int]:
        batches = Batches(ids(5000), 1, 10, seed)
        first = epoch * batches.windows
        return [int(batches.batch(step)[0][0, 0]) for step in range(first, first + batches.windows)]

    orders = [starts(seed, epoch) for seed in (0, 1) for epoch in range(4)]
    assert len({tuple(order) for order in orders}) == 8
    assert len({min(order) for order in orders}) > 2  # the windows begin at random shifts
    assert all(order != sorted(order) for order in orders)


def test_the_order_of_an_epoch_is_a_permutation_in_half_of_its_memory() -> None:
    count = 2_000_000
    tokens = np.arange(count, dtype=np.uint32)
    rng = np.random.default_rng((5, 0))
    shift = int(rng.integers(1))
    expected = shift + rng.permutation(count - 1)[:1000]
    tracemalloc.start()
    try:
        inputs, _ = Batches(tokens, 1000, 1, seed=5).batch(0)
        assert tracemalloc.get_traced_memory()[1] < 6 * count
    finally:
        tracemalloc.stop()
    assert inputs[:, 0].tolist() == expected.tolist()


def test_every_token_is_a_target_sooner_or_later() -> None:
    for count in (11, 12, 19, 20, 25, 57):
        batches = Batches(ids(count), 1, 10, 0)
        seen = torch.cat([batches.batch(step)[1] for step in range(100 * batches.windows)])
        assert len(seen.unique()) == count - 1, count


def test_a_memory_map_serves_as_well_as_an_array(tmp_path: Path) -> None:
    with TokenWriter(tmp_path / "x.tokens", 70_000, "aa") as writer:
        writer.append(np.arange(60_000, 69_000))
    mapped = TokenFile(tmp_path / "x.tokens").tokens
    inputs, targets = Batches(mapped, 4, 16, 0).batch(3)
    same, _ = Batches(np.array(mapped), 4, 16, 0).batch(3)
    assert torch.equal(inputs, same)
    targets += 1  # changing a batch does not change the tokens


@pytest.mark.parametrize("count", [0, 1, 8])
def test_too_few_tokens_name_the_setting(count: int) -> None:
    with pytest.raises(DataError) as error:
        Batches(ids(count), 1, 8, 0)
    assert str(error.value).startswith(f"the training text has {counted(count, 'token')}, but one window needs 9")
    assert "--model.max-seq-len" in str(error.value)
    assert Batches(ids(9), 1, 8, 0).batch(5)[1].tolist() == [list(range(1001, 1009))]


@pytest.mark.parametrize("count", [0, 1])
def test_a_text_without_a_target_cannot_be_evaluated(count: int) -> None:
    with pytest.raises(DataError, match=f"the text has {counted(count, 'token')}, and needs at least 2"):
        next(eval_batches(ids(count), 8, 8, 1))


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"train.batch_size: 10 is not a multiple of the 4 ranks"):
        Batches(ids(100), 10, 8, 0).batch(0, 0, 4)


# --- evaluation

evaluations = st.tuples(st.integers(1, 12), st.integers(2, 150), st.integers(1, 5)).flatmap(
    lambda drawn: st.tuples(st.just(drawn), st.integers(1, drawn[0]))
)


@given(evaluations)
def test_every_token_but_the_first_is_scored_once_with_its_true_past(
    drawn: tuple[tuple[int, int, int], int],
) -> None:
    (seq_len, count, batch_size), stride = drawn
    scored: list[int] = []
    for inputs, targets in eval_batches(ids(count), seq_len, stride, batch_size):
        assert inputs.shape == targets.shape
        assert inputs.shape[0] <= batch_size
        assert inputs.shape[1] == seq_len
        rows, columns = torch.nonzero(targets != IGNORE, as_tuple=True)
        assert bool((inputs[rows, columns] + 1 == targets[rows, columns]).all())
        for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
            place = int(targets[row, column]) - 1000
            past = inputs[row, : column + 1] - 1000
            assert past.tolist() == list(range(place - column - 1, place))
            assert column + 1 >= min(seq_len - stride + 1, place)  # at least the promised context
            scored.append(place)
    assert sorted(scored) == list(range(1, count))


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 6))
def test_a_part_is_spread_over_the_text_whatever_the_batch_size(rows: int, count: int, together: int) -> None:
    """`count` batches of `together` rows are, row by row, `count * together` batches of one."""
    tokens = ids(2 * rows + 1)
    whole = [inputs for inputs, _ in eval_batches(tokens, 2, 2, together, count)]
    single = [inputs for inputs, _ in eval_batches(tokens, 2, 2, 1, count * together, together)]
    assert torch.equal(torch.cat(whole), torch.cat(single))
    taken = spread(rows, count)
    assert len(taken) == min(rows, count)
    gaps = [after - before for before, after in pairwise([*taken, rows])]
    assert taken[0] == 0
    assert max(gaps) - min(gaps) <= 1


def test_spread_worked_example() -> None:
    assert list(spread(12, 4, 2)) == [0, 1, 6, 7]
    assert list(spread(7, 2, 2)) == [0, 1]
    assert list(spread(7, 4, 2)) == [0, 1, 4, 5]
    assert list(spread(3)) == list(spread(3, 9)) == [0, 1, 2]


@given(evaluations)
def test_windows_are_the_rows_without_padding(drawn: tuple[tuple[int, int, int], int]) -> None:
    (seq_len, count, batch_size), stride = drawn
    rows = [
        (inputs[row], targets[row])
        for inputs, targets in eval_batches(ids(count), seq_len, stride, batch_size)
        for row in range(len(inputs))
    ]
    single = list(windows(ids(count), seq_len, stride))
    assert len(single) == len(rows)
    for (inputs, targets), (padded, padded_targets) in zip(single, rows, strict=True):
        assert torch.equal(inputs, padded[: len(inputs)])
        assert torch.equal(targets, padded_targets[: len(targets)])
        assert padded[len(inputs) :].tolist() == [0] * (seq_len - len(inputs))
        assert padded_targets[len(inputs) :].tolist() == [IGNORE] * (seq_len - len(inputs))


def test_windows_worked_example() -> None:
    found = [(inputs.tolist(), targets.tolist()) for inputs, targets in windows(np.arange(8), 4, 2)]
    assert found == [
        ([0, 1, 2, 3], [1, 2, 3, 4]),
        ([2, 3, 4, 5], [IGNORE, IGNORE, 5, 6]),
        ([4, 5, 6], [IGNORE, IGNORE, 7]),
    ]


@pytest.mark.parametrize("stride", [0, 9, -1])
def test_a_stride_that_would_skip_tokens_is_refused(stride: int) -> None:
    with pytest.raises(ConfigError, match=r"not in 1\.\.8"):
        next(eval_batches(ids(50), 8, stride, 2))


@pytest.mark.parametrize("count", [0, 1])
def test_a_text_with_nothing_to_predict_is_refused(count: int) -> None:
    with pytest.raises(DataError, match="at least 2"):
        next(eval_batches(ids(count), 8, 8, 2))


def test_batches_are_freed_without_the_garbage_collector() -> None:
    """Windows deletes no token file that is still mapped, and the order of a long text's windows is large."""
    made = [Batches(ids(100), 4, 8, 0), RowBatches([Row(np.arange(4), np.ones(4, bool))] * 8, 4, 8, 0)]
    for each in made:
        each.batch(0)
    left = [weakref.ref(each) for each in made]
    gc.disable()
    try:
        del made, each
        assert [found() for found in left] == [None, None]
    finally:
        gc.enable()
