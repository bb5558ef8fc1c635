"""Draw runs: `minigpt plot`."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.console import out, out_json, tell
from minigpt.errors import UserError
from minigpt.layout import RunFolder

DEFAULT = "loss,perplexity"


@dataclass(frozen=True)
class Plot:
    """Draw one or more runs in one picture, PNG or SVG: loss, perplexity, rates, speed, or loss against size.

    minigpt plot runs/my
    minigpt plot runs/my --what all
    minigpt plot runs/a runs/b --what bpb,throughput --x tokens --out compare.svg
    minigpt plot runs/sweep --what scaling

    Faint lines show the logged values, thin lines their running mean, bold lines with dots the validation values. Runs
    that differ only in their seed are one curve, their mean, in a band of the sample standard deviation. Floors
    (measured at the end of a run, or by minigpt eval RUN --save) are drawn if all runs have the same ones. Compare
    losses per token only with one tokenizer; you can always compare bits per byte. Scaling is the best validation loss
    against parameters, tokens and FLOPs, with a power law through the frontier if three runs or more are on it. A run
    that has not logged the values of a panel is left out of the panel, and a message says so. Needs matplotlib: pip
    install 'minigpt[plot]'. To draw texts and tokenizers: minigpt data inspect --plot, minigpt tokenizer inspect
    --plot.
    """

    runs: Positional[tuple[PathText, ...]]
    """Run directories, or folders of runs such as a sweep's."""
    what: str = DEFAULT
    """Panels, with commas between: loss, perplexity, bpb (bits per byte), learning-rate, gradient-norm, throughput; or
    all; or scaling."""
    out: PathText | None = None
    """File to write, .png or .svg (default: plots/WHAT.png in the first run or folder; plots/compare.png
    for the loss of several)."""
    format: Literal["png", "svg"] | None = None
    """Kind of picture if --out is left out (default: png)."""
    x: Literal["step", "tokens", "minutes"] | None = None
    """What the horizontal axis counts (default: step); scaling has its own axes."""
    seeds: Literal["band", "lines"] = "band"
    """How to draw runs that differ only in their seed: their mean with a band (scaling: a bar), or each one."""
    json: bool = False
    """Print one JSON object: path, runs (a list of {run, step, loss, val_loss, best_val_loss, best_step}; null if
    nothing was logged), scaling (with --what scaling: {unit, points, fits}, see docs/howto/plots.md; else null)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Plot, argv, "plot")
    if not args.runs:
        raise UserError("no run to plot; give a directory, for example: minigpt plot runs/my")
    if args.out is not None and args.format is not None and Path(args.out).suffix.lower() != f".{args.format}":
        raise UserError(f"--out {args.out} does not end in .{args.format}; leave --format out")
    what = _what(args)
    from minigpt.explanation import draw_scaling, drawable, last_values, measure_scaling, plot_runs
    from minigpt.runs.compare import seeds_together
    from minigpt.runs.record import readable, run_folders

    paths = run_folders(args.runs)
    named = [Path(word) for word in args.runs]
    new = [path for path in paths if path not in named and not RunFolder(path).metrics.is_file()]
    if new and len(new) < len(paths):  # in a sweep that still runs
        tell(f"no metrics yet, left out: {', '.join(path.name for path in new)}")
        paths = [path for path in paths if path not in new]
    paths = readable(paths, tell)
    name = what.replace(",", "-")
    if what == DEFAULT:
        name = "loss" if len(paths) == 1 else "compare"
    target = drawable(args.out or RunFolder(Path(args.runs[0])).plot(f"{name}.{args.format or 'png'}"))
    curves: Any = seeds_together(paths) if args.seeds == "band" else paths
    scaling = None
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always")
        if what == "scaling":
            scaling = measure_scaling(curves)
            draw_scaling(scaling, target)
        else:
            panels: Any = "all" if what == "all" else what.split(",")
            plot_runs(curves, target, what=panels, x=args.x or "step")
    for warning in left_out:
        tell(str(warning.message))
    if args.json:
        rows = [{"run": str(path)} | last_values(path) for path in paths]
        out_json({"path": str(target), "runs": rows, "scaling": scaling})
    else:
        out(str(target))
    return 0


def _what(args: Plot) -> str:
    """The panels, without spaces. Raises UserError for panels that cannot be drawn together."""
    words = [word.strip() for word in args.what.split(",")]
    if len(words) > 1 and {"all", "scaling"} & set(words):
        raise UserError("--what all and --what scaling are pictures by themselves; draw them one after another")
    if words == ["scaling"] and args.x:
        raise UserError("--what scaling has axes of its own; leave --x out")
    return ",".join(words)
