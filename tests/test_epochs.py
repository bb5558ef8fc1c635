"""The table of epochs, from lines of metrics.jsonl written by hand."""

import math

import pytest

from minigpt.assemble.hooks import epoch_table


def test_rows_are_epochs_with_weighted_means_and_the_last_validation_loss() -> None:
    lines = [
        {"step": 10, "epoch": 0.4, "seconds": 1.0, "loss": 4.0},
        {"step": 25, "epoch": 1.0, "seconds": 2.5, "loss": 2.0, "val_loss": 3.0},
        {"step": 35, "epoch": 1.4, "seconds": 4.0, "loss": 1.5, "val_loss": 2.5},
        {"step": 45, "epoch": 1.8, "seconds": 5.0, "loss": 1.0},
        {"step": 55, "epoch": 2.2, "seconds": 6.0, "loss": 0.5},
    ]
    first, second, third = epoch_table(lines)
    assert first["epoch"] == 1
    assert first["train_loss"] == pytest.approx((10 * 4.0 + 15 * 2.0) / 25)
    assert first["train_perplexity"] == pytest.approx(math.exp(2.8))
    assert (first["val_loss"], first["seconds"]) == (3.0, 2.5)
    assert (second["epoch"], second["val_loss"], second["seconds"]) == (2, 2.5, 2.5)
    assert second["train_loss"] == pytest.approx(1.25)
    assert (third["epoch"], third["train_loss"]) == (2.2, 0.5)
    assert "val_loss" not in third
