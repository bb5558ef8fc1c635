"""Make the table of epochs that is shown at the end of a run."""

import math
from collections.abc import Collection
from itertools import groupby
from typing import Any

from rich.table import Table

RECENT = 0.1
"""A row's training loss is the mean over this share of the epoch's steps, just before its last evaluation."""


def epoch_table(lines: list[dict[str, Any]], per_token: Collection[str] = ("train", "val")) -> list[dict[str, float]]:
    """One row per epoch (the last may be partial): losses, perplexities, seconds.

    Both losses are of the same time: the validation loss is from the epoch's last evaluation, and the training loss is
    the mean over the steps just before it (see `RECENT`; without an evaluation: before the epoch's end). The step in
    which an epoch ends belongs to that epoch, although its last tokens may belong to the next.

    Args:
        lines: the lines of metrics.jsonl.
        per_token: which of the two losses are nats per token; only these have a perplexity.
    """
    before = {"step": 0, "seconds": 0.0}  # the line before each line of a step
    steps: list[dict[str, Any]] = []
    for line in lines:
        if line["step"]:
            steps.append(line | {"steps": line["step"] - before["step"], "taken": line["seconds"] - before["seconds"]})
        before = line
    if not steps:
        return []
    # a step's share of an epoch: at least 1e-3 (the file rounds epochs to 1e-4), at most a whole epoch
    one_step = min(max(steps[-1]["epoch"] / steps[-1]["step"], 1e-3), 1.0)

    def epoch(line: dict[str, Any]) -> int:
        """The epoch in which the line's last step began."""
        return max(1, math.floor(line["epoch"] - one_step + 1e-4) + 1)

    rows = [_row(list(group), number) for number, group in groupby(steps, epoch)]
    for row in rows:
        for name in per_token:
            if f"{name}_loss" in row:
                row[f"{name}_perplexity"] = math.exp(min(row[f"{name}_loss"], 700))
    rows[-1]["epoch"] = round(steps[-1]["epoch"], 2)  # earlier epochs are whole
    return rows


def _row(lines: list[dict[str, Any]], epoch: int) -> dict[str, float]:
    row: dict[str, float] = {"epoch": epoch, "seconds": sum(line["taken"] for line in lines)}
    evaluated = [place for place, line in enumerate(lines) if "val_loss" in line]
    upto = lines[: evaluated[-1] + 1] if evaluated else lines
    least = RECENT * sum(line["steps"] for line in lines)
    nats, count = 0.0, 0
    for line in reversed(upto):
        if "loss" in line and count < least:
            nats, count = nats + line["loss"] * line["steps"], count + line["steps"]
    if count:
        row["train_loss"] = nats / count
    if evaluated:
        row["val_loss"] = lines[evaluated[-1]]["val_loss"]
    return row


def render_epochs(rows: list[dict[str, float]]) -> Table:
    """The rows of `epoch_table` as a table for the screen."""
    table = Table("epoch", "train loss", "train ppl", "val loss", "val ppl", "seconds", box=None)
    columns = {"train_loss": ".4f", "train_perplexity": ".2f", "val_loss": ".4f", "val_perplexity": ".2f"}
    for row in rows:
        figures = [format(row[key], form) if key in row else "-" for key, form in columns.items()]
        table.add_row(f"{row['epoch']:g}", *figures, f"{row['seconds']:.1f}")
    return table
