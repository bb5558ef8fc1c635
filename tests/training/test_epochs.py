"""Test the table of epochs, from lines of metrics.jsonl written by hand."""

import math

import pytest

from minigpt.config import RunConfig
from minigpt.runs.train import _per_token
from minigpt.training.hooks.epochs import epoch_table
from minigpt.training.schedule import whole_epochs


def test_rows_are_epochs_with_both_losses_of_the_last_evaluation() -> None:
    lines = [
        {"step": 0, "epoch": 0.0, "seconds": 0.0, "val_loss": 5.0},
        {"step": 10, "epoch": 0.4, "seconds": 1.0, "loss": 4.0},
        {"step": 25, "epoch": 1.0, "seconds": 2.5, "loss": 2.0, "val_loss": 3.0},
        {"step": 35, "epoch": 1.4, "seconds": 4.0, "loss": 1.5, "val_loss": 2.5},
        {"step": 45, "epoch": 1.8, "seconds": 5.0, "loss": 1.0},
        {"step": 55, "epoch": 2.2, "seconds": 6.0, "loss": 0.5},
    ]
    first, second, third = epoch_table(lines)
    assert first["epoch"] == 1
    assert first["train_loss"] == 2.0, "the loss of the steps before the evaluation, not of the whole epoch"
    assert first["train_perplexity"] == pytest.approx(math.exp(2.0))
    assert (first["val_loss"], first["seconds"]) == (3.0, 2.5)
    assert (second["epoch"], second["val_loss"], second["seconds"]) == (2, 2.5, 2.5)
    assert second["train_loss"] == 1.5, "steps after the evaluation do not count"
    assert (third["epoch"], third["train_loss"]) == (2.2, 0.5)
    assert "val_loss" not in third


def test_the_training_loss_is_the_mean_of_the_last_tenth_of_the_steps() -> None:
    lines = [{"step": step, "epoch": step / 100, "seconds": 1.0, "loss": float(step)} for step in range(1, 101)]
    lines[49]["val_loss"] = lines[79]["val_loss"] = 1.0
    lines.insert(0, {"step": 0, "epoch": 0.0, "seconds": 0.0, "val_loss": 9.0})
    (row,) = epoch_table(lines)
    assert row["train_loss"] == sum(range(71, 81)) / 10
    del lines[71]["loss"]  # a step that was skipped
    assert epoch_table(lines)[0]["train_loss"] == (70 + sum(range(72, 81))) / 10
    assert epoch_table(lines[:1]) == [], "stopped before the first step"


def test_only_a_loss_per_token_has_a_perplexity() -> None:
    lines = [{"step": 5, "epoch": 1.0, "seconds": 1.0, "loss": 0.7, "val_loss": 0.6}]
    tables = [epoch_table(lines, which)[0].keys() for which in (("train", "val"), ("val",), ())]
    perplexities = [{key for key in keys if "perplexity" in key} for keys in tables]
    assert perplexities == [{"train_perplexity", "val_perplexity"}, {"val_perplexity"}, set()]
    plain, smooth = RunConfig(), RunConfig().changed(train={"label_smoothing": 0.1})
    pairs = RunConfig().changed(finetune={"dpo_beta": 0.1})
    assert [_per_token(config) for config in (plain, smooth, pairs)] == [("train", "val"), ("val",), ()]


def test_a_step_that_ends_a_little_past_an_epoch_belongs_to_it() -> None:
    per_epoch = 597.64  # tiny-6.7m on WikiText-2: step 598 ends the first epoch, 1,196 the second
    steps = (590, 598, 600, 1190, 1196, 1200)
    lines = [{"step": step, "epoch": round(step / per_epoch, 4), "seconds": 0.1 * step, "loss": 4.0} for step in steps]
    lines[1]["val_loss"], lines[4]["val_loss"] = 3.0, 2.0
    rows = epoch_table(lines)
    assert [(row["epoch"], row.get("val_loss")) for row in rows] == [(1, 3.0), (2, 2.0), (2.01, None)]
    assert rows[0]["seconds"] == pytest.approx(59.8)


@pytest.mark.parametrize("per_epoch", [1.0, 3.0, 10.0, 40000.0])
def test_whole_epochs_have_their_own_steps_and_no_other(per_epoch: float) -> None:
    every = max(1, int(per_epoch) // 10)
    lines = [
        {"step": step, "epoch": round(step / per_epoch, 4), "seconds": float(step), "loss": math.ceil(step / per_epoch)}
        for step in range(every, int(per_epoch * 3) + 1, every)
    ]
    assert [row["train_loss"] for row in epoch_table(lines)] == [1.0, 2.0, 3.0]


def test_a_step_of_several_epochs_is_a_row_named_after_the_last() -> None:
    lines = [{"step": step, "epoch": 3.0 * step, "seconds": float(step), "loss": 4.0 / step} for step in (1, 2)]
    assert [(row["epoch"], row["train_loss"]) for row in epoch_table(lines)] == [(3, 4.0), (6, 2.0)]


def test_an_epoch_ends_with_the_step_that_reads_its_last_window() -> None:
    for windows in range(1, 100):
        for batch in (1, 3, 12, 48):
            for step in range(1, 2 * windows):
                assert whole_epochs(step, windows / batch) == step * batch // windows
