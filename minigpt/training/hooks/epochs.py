"""The table of epochs at the end of a run."""

import math
from typing import Any

from rich.table import Table


def epoch_table(lines: list[dict[str, Any]]) -> list[dict[str, float]]:
    """One row an epoch (the last may be partial): mean training loss, last validation loss, perplexities, seconds.

    A step that ends an epoch counts for it whole, though it may end some tokens past it.

    Args:
        lines: of metrics.jsonl.
    """
    # a step's share of an epoch: at least what the file's rounding to 1e-4 can tell, at most a whole one
    one_step = min(max(lines[-1]["epoch"] / lines[-1]["step"], 1e-3), 1.0) if lines else 1.0
    rows: dict[int, dict[str, float]] = {}
    weights: dict[int, float] = {}
    before = 0.0
    last_step = 0
    for line in lines:
        epoch = max(1, math.floor(line["epoch"] - one_step + 1e-4) + 1)  # in which its last step began
        row = rows.setdefault(epoch, {"epoch": epoch, "train_loss": 0.0, "seconds": 0.0})
        steps = line["step"] - last_step
        weights[epoch] = weights.get(epoch, 0.0) + steps
        loss = line.get("loss", row["train_loss"])
        row["train_loss"] += (loss - row["train_loss"]) * steps / max(weights[epoch], 1e-9)
        row["epoch"] = round(line["epoch"], 2)
        row["seconds"] += line["seconds"] - before
        if "val_loss" in line:
            row["val_loss"] = line["val_loss"]
        before, last_step = line["seconds"], line["step"]
    for epoch in list(rows)[:-1]:  # all but the last are whole, wherever their last line was written
        rows[epoch]["epoch"] = epoch
    for row in rows.values():
        row["train_perplexity"] = math.exp(min(row["train_loss"], 700))
        if "val_loss" in row:
            row["val_perplexity"] = math.exp(min(row["val_loss"], 700))
    return list(rows.values())


def render_epochs(rows: list[dict[str, float]]) -> Table:
    """The table of `epoch_table` for the screen."""
    table = Table("epoch", "train loss", "train ppl", "val loss", "val ppl", "seconds", box=None)
    for row in rows:
        has_val = "val_loss" in row
        table.add_row(
            f"{row['epoch']:g}",
            f"{row['train_loss']:.4f}",
            f"{row['train_perplexity']:.2f}",
            f"{row['val_loss']:.4f}" if has_val else "-",
            f"{row['val_perplexity']:.2f}" if has_val else "-",
            f"{row['seconds']:.1f}",
        )
    return table
