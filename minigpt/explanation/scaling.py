"""Measure and draw scaling: the best validation loss of runs against parameters, training tokens and FLOPs.

A law L = a x^-b, a straight line on log axes, is fitted to the frontier: the runs that are better than all runs with
a smaller x. It holds only in the range of these runs: no text's loss falls to 0, so the line bends later (Hoffmann et
al., 2022).
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt.errors import RunError, UserError
from minigpt.explanation.canvas import (
    COLOURS,
    INK,
    drawable,
    elided,
    in_font,
    label_at_right,
    logarithmic,
    new_figure,
    quiet,
    write_figure,
)
from minigpt.explanation.metrics import count_tokenizers, read_metrics, units_of_losses
from minigpt.explanation.run_plots import Runs, group_names, run_groups
from minigpt.layout import RunFolder

if TYPE_CHECKING:
    from matplotlib.axes import Axes

AXES = {"parameters": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
SYMBOLS = {"parameters": "N", "tokens": "D", "flops": "C"}
LEAST = 3
"""Smallest number of runs on the frontier for which a law is fitted."""


def measure_scaling(runs: Runs) -> dict[str, Any]:
    """Find the best losses of runs, and fit the laws through them.

    Args:
        runs: run directories. A list inside the list, such as several seeds, becomes one point, their mean.

    Returns:
        unit: "nats per token" (DPO: "nats per pair"), or "bits per byte" if the tokenizers differ;
        points: a list of {run, parameters (all of the model), tokens (read up to the best evaluation), flops
            (`cost.flops_per_token` times tokens, twice that with masked inputs; the whole context is counted, also
            where context_warmup splits it), loss (the best validation loss, in the unit), deviation (the sample
            standard deviation over the runs of a point; null for one run)}; a run without an evaluation is left out
            with a warning;
        fits: {parameters, tokens, flops: {factor, exponent, runs} of loss = factor x^-exponent, or null if fewer
            than 3 runs are on the frontier}.

    Raises:
        RunError: no such run, or a run without config.yaml. UserError: fewer than two runs have been evaluated.
    """
    groups = run_groups(runs)
    paths = [path for group in groups for path in group]
    differ = count_tokenizers(paths) > 1
    points, missing = [], []
    for name, group in zip(group_names(groups), groups, strict=True):
        found = {path: _end(path, "bits_per_byte" if differ else "val_loss") for path in group}
        missing += [path.name for path, end in found.items() if not end]
        ends = [end for end in found.values() if end]
        if ends:
            mean = {key: float(np.mean([end[key] for end in ends])) for key in ends[0]}
            deviation = float(np.std([end["loss"] for end in ends], ddof=1)) if len(ends) > 1 else None
            points.append({"run": name, **mean, "deviation": deviation})
    if missing:
        warnings.warn(f"not evaluated yet, left out: {', '.join(missing)}", stacklevel=2)
    if len(points) < 2:
        raise UserError("scaling needs two runs or more that have been evaluated, seeds counting as one; name more")
    unit = "bits per byte" if differ else f"nats per {' or '.join(units_of_losses(paths))}"
    return {"unit": unit, "points": points, "fits": {key: _fit(points, key) for key in AXES}}


def _end(run: Path, column: str) -> dict[str, float] | None:
    """The figures of a run's best evaluation; None if it has no evaluation."""
    from minigpt.config import load_config
    from minigpt.model.cost import flops_per_token, parameter_table  # imports torch

    metrics = read_metrics(run)
    if column not in metrics or "tokens" not in metrics:
        return None
    losses = np.where(metrics["tokens"] > 0, metrics[column], math.nan)  # without the untrained model
    if not np.isfinite(losses).any():
        return None
    folder = RunFolder(run)
    if not folder.is_run:
        raise RunError(f"{run} has no {folder.config.name}, which has the model's size; give the directory of a run")
    config, best = load_config(folder.config), int(np.nanargmin(losses))
    tokens = float(metrics["tokens"][best])
    return {
        "parameters": parameter_table(config.model)["total"],
        "tokens": tokens,
        "flops": config.train.passes * flops_per_token(config.model) * tokens,
        "loss": float(losses[best]),
    }


def frontier(points: Sequence[dict[str, Any]], key: str) -> list[dict[str, Any]]:
    """The points that are better than all others with the same or a smaller `key`; sorted by `key`, so losses fall."""
    kept: list[dict[str, Any]] = []
    for point in sorted(points, key=lambda point: (point[key], point["loss"])):
        if not kept or point["loss"] < kept[-1]["loss"]:
            kept.append(point)
    return kept


def _fit(points: Sequence[dict[str, Any]], key: str) -> dict[str, float] | None:
    """Fit the law by least squares on the logarithms of the frontier; None if it has too few points."""
    best = frontier(points, key)
    if len(best) < LEAST:
        return None
    slope, level = np.polyfit(np.log([point[key] for point in best]), np.log([point["loss"] for point in best]), 1)
    return {"factor": float(np.exp(level)), "exponent": -float(slope), "runs": len(best)}


def draw_scaling(scaling: dict[str, Any], out: str | Path) -> Path:
    """Draw an object of `measure_scaling` on log axes: one panel each for parameters, tokens and FLOPs.

    A run has the same height in all three panels; its name is at the right. Full dots are on the frontier, open dots
    are not. Bars show the standard deviation of the seeds.

    Raises:
        UserError: matplotlib is missing, or the suffix is not .png or .svg. StorageError: out cannot be written.
    """
    out, figure = drawable(out), new_figure(13, 4.4)
    panels, points = figure.subplots(1, 3, sharey=True), scaling["points"]
    for axes, key in zip(panels, AXES, strict=True):
        _draw_points(axes, points, key)
        logarithmic(axes, "x")
        logarithmic(axes)
        axes.margins(0.08)
    for axes, key in zip(panels, AXES, strict=True):
        quiet(axes, "", AXES[key], grid="both")
        if fit := scaling["fits"][key]:
            _draw_law(axes, fit, SYMBOLS[key])
    title = f"best validation loss, {scaling['unit']}"
    figure.suptitle(title, color=INK, fontsize=10.5, x=0.012, ha="left")
    names = [(point["loss"], f"{point['loss']:.2f}  {elided(in_font(point['run']))}", COLOURS[0]) for point in points]
    label_at_right(panels[-1], names, 3.7)
    return write_figure(figure, out)


def _draw_points(axes: "Axes", points: list[dict[str, Any]], key: str) -> None:
    best = frontier(points, key)
    for on, chosen in ((False, [point for point in points if point not in best]), (True, best)):
        axes.errorbar(
            [point[key] for point in chosen], [point["loss"] for point in chosen],
            yerr=[point["deviation"] or 0 for point in chosen], fmt="o", markersize=6.5, color=COLOURS[0],
            markerfacecolor=COLOURS[0] if on else "white", elinewidth=1.2, zorder=3 + on,
        )  # fmt: skip


def _draw_law(axes: "Axes", fit: dict[str, float], symbol: str) -> None:
    """Draw the law as a line over the whole panel, with its formula above the panel."""
    ends = np.array(axes.get_xlim())
    low, high = axes.get_ylim()
    axes.plot(ends, fit["factor"] * ends ** -fit["exponent"], color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
    axes.set(xlim=ends, ylim=(low, high))
    formula = f"$L = {_tex(fit['factor'])}\\,{symbol}^{{{-fit['exponent']:.3f}}}$"
    axes.set_title(formula, loc="right", color=INK, fontsize=10.5, pad=8)


def _tex(value: float) -> str:
    """Format a number as TeX: 12.3, or 1.2 x 10^5."""
    if 0.01 <= value < 1e4:
        return f"{value:.3g}"
    power = math.floor(math.log10(value))
    return f"{value / 10**power:.2g} \\times 10^{{{power}}}"
