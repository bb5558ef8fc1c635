"""minigpt plot."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from minigpt.cli.console import out, out_json, parse
from minigpt.errors import UserError


@dataclass(frozen=True)
class Plot:
    """Draw loss and perplexity of one or more runs over each other, as PNG or SVG.

    minigpt plot runs/my
    minigpt plot runs/a runs/b --x tokens --out compare.svg

    Faint: the training loss as logged; thin: its running mean; bold with dots: validation. Floors are drawn for one
    run that has been evaluated with minigpt eval RUN --save. Losses per token compare only under the same tokenizer.
    Needs matplotlib: pip install 'minigpt[plot]'.
    """

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run directories."""
    out: str | None = None
    """File to write, .png or .svg (default: plots/loss.png in the run; plots/compare.png in the first of several)."""
    format: Literal["png", "svg"] | None = None
    """Kind of picture where --out is left out (default: png)."""
    x: Literal["step", "tokens", "minutes"] = "step"
    """What the horizontal axis counts."""
    json: bool = False
    """Print one JSON object: path, runs (a list of {run, step, loss, val_loss, best_val_loss, best_step}; null where
    nothing was logged)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Plot, argv, "plot")
    if not args.runs:
        raise UserError("no run to plot; give a directory, for example: minigpt plot runs/my")
    if args.out is not None and args.format is not None and Path(args.out).suffix.lower() != f".{args.format}":
        raise UserError(f"--out {args.out} does not end in .{args.format}; leave --format out")
    name = "loss" if len(args.runs) == 1 else "compare"
    target = Path(args.out) if args.out else Path(args.runs[0]) / "plots" / f"{name}.{args.format or 'png'}"
    from minigpt.viz import last_values, plot_runs

    path = plot_runs(args.runs, target, x=args.x)
    if args.json:
        out_json({"path": str(path), "runs": [{"run": run} | last_values(run) for run in args.runs]})
    else:
        out(str(path))
    return 0
