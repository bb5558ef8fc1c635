"""Loss and perplexity of one run or several, as one PNG or SVG.

Faint: the training loss as it was logged. Thin: its running mean. Bold with dots: validation. Perplexity is exp of
the same curves. Losses are in nats per token, so only runs with the same tokenizer can be compared by them.
Drawn with matplotlib's objects, not pyplot: no window, no global figure, safe in any thread.
"""

import io
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minigpt.errors import StorageError, UserError
from minigpt.viz.metrics import Array, read_floors, read_metrics, smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Horizontal = Literal["step", "tokens", "minutes"]
SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, QUIET, GRID = "#222222", "#767676", "#e8e8e8"
VALIDATION: dict[str, Any] = {
    "linewidth": 2, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.8
}  # fmt: skip
PANEL_HEIGHT = 3.7  # inches, about
FLOOR_NAMES = {
    "uniform": "uniform",
    "unigram": "unigram",
    "five_gram": "5-gram",
    "xz": "xz",
    "entropy": "entropy of the source",
}


def plot_runs(runs: Sequence[str | Path], out: str | Path, *, x: Horizontal = "step") -> Path:
    """Draw loss and perplexity of the runs over each other.

    Args:
        runs: run directories; one alone gets the floors of its eval.json too, where it has one.
        out: file to write, .png or .svg; directories are made.
        x: what the horizontal axis counts.

    Raises:
        RunError: no such run, no metrics, a damaged line (see `read_metrics`).
        UserError: matplotlib is missing, another suffix, a run that has not logged x.
        StorageError: out cannot be written.
    """
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {out.name}; name a file that ends in .png or .svg")
    if not runs:
        raise UserError("nothing to plot; give at least one run")
    paths = [Path(run) for run in runs]
    curves = [read_metrics(path) for path in paths]
    floors = read_floors(paths[0]) if len(paths) == 1 else {}
    return write_figure(draw_runs(short_names(paths), curves, floors, x), out)


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart: [a/x, b/x] -> ["a/x", "b/x"]; [a/x, a/y] -> ["x", "y"]."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while length < max(map(len, parts)) and len({each[-length:] for each in parts}) < len(set(parts)):
        length += 1
    return ["/".join(each[-length:]) for each in parts]


def draw_runs(
    names: list[str], curves: list[dict[str, Array]], floors: dict[str, float], x: Horizontal = "step"
) -> "Figure":
    """The picture: loss at the left with its floors (nats per token), perplexity at the right. See `plot_runs`."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs matplotlib; install it with: pip install 'minigpt[plot]'") from None
    figure = Figure(figsize=(11, 4.6), dpi=160, layout="constrained", facecolor="white")
    left, right = figure.subplots(1, 2)
    for name, metrics, colour in zip(names, curves, itertools.cycle(COLOURS), strict=False):
        along = _horizontal(name, metrics, x)
        _curves(left, along, metrics, colour, lambda loss: loss)
        _curves(right, along, metrics, colour, _perplexity)
    left.set_ylabel("loss (nats per token)")
    right.set_ylabel("perplexity")
    low, high = right.get_ylim()
    if high > 8 * max(low, 1):
        _logarithmic(right)
    for axes in (left, right):
        _style(axes, x)
    _floors(left, floors)
    for axes in (left, right):
        _last_values(axes)
    _legend(figure, names, curves)
    return figure


def _horizontal(name: str, metrics: dict[str, Array], x: Horizontal) -> Array:
    key = "seconds" if x == "minutes" else x
    if key not in metrics:
        raise UserError(f"{name} has not logged {key}; plot it over step")
    return metrics[key] / 60 if x == "minutes" else metrics[key]


def _perplexity(loss: Array) -> Array:
    """exp(loss); a loss above 30 nats is a run that blew up, and would only flatten the others."""
    return np.exp(np.where(loss > 30, math.nan, loss))


def _curves(axes: "Axes", along: Array, metrics: dict[str, Array], colour: str, scale: Callable) -> None:
    """Training, raw and smoothed, and validation of one run."""
    if "loss" in metrics:
        there = np.isfinite(metrics["loss"]) & np.isfinite(along)
        at, loss = along[there], metrics["loss"][there]
        axes.plot(at, scale(loss), color=colour, alpha=0.18, linewidth=0.8, zorder=2)
        axes.plot(at, scale(smooth(loss, len(loss) // 40)), color=colour, alpha=0.75, linewidth=1.1, zorder=3)
    if "val_loss" in metrics:
        there = np.isfinite(metrics["val_loss"]) & np.isfinite(along)
        dots: dict[str, Any] = VALIDATION if there.sum() <= 50 else VALIDATION | {"marker": ""}
        loss = scale(metrics["val_loss"][there])
        axes.plot(along[there], loss, color=colour, zorder=4, clip_on=False, label="_validation", **dots)


def _last_values(axes: "Axes") -> None:
    """The last validation value of each run beside its curve, moved apart where they would cover each other."""
    ends = []
    for line in axes.get_lines():
        x, y = np.asarray(line.get_xdata(), float), np.asarray(line.get_ydata(), float)
        if line.get_label() == "_validation" and len(y) and math.isfinite(y[-1]):
            height = axes.transAxes.inverted().transform(axes.transData.transform((x[-1], y[-1])))[1]
            ends.append((height, x[-1], y[-1], line.get_color()))
    ends.sort(key=lambda end: end[0])
    gap = 12 / (72 * PANEL_HEIGHT)  # of the panel's height: 12 points, a line of text
    above = -math.inf
    for height, x, y, colour in ends:
        above = max(height, above + gap)
        axes.annotate(
            f"{y:.2f}" if y < 100 else f"{y:,.0f}", (x, y), xytext=(7, (above - height) * 72 * PANEL_HEIGHT),
            textcoords="offset points", va="center", color=colour, fontsize=9, weight="bold", annotation_clip=False,
        )  # fmt: skip


def _logarithmic(axes: "Axes") -> None:
    """A log scale whose ticks are plain numbers: 4, 10, 20, 40 rather than powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _style(axes: "Axes", x: Horizontal) -> None:
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    axes.set_xlabel({"step": "step", "tokens": "training tokens", "minutes": "minutes of training"}[x])
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.margins(x=0.01)
    axes.grid(axis="y", which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, length=0, pad=6, labelsize=9, which="both")
    axes.xaxis.label.set(color=INK, fontsize=10)
    axes.yaxis.label.set(color=INK, fontsize=10)


def _floors(axes: "Axes", floors: dict[str, float]) -> None:
    """Dashed lines at the floors that fall in sight; the source's entropy is always brought into sight.

    A name stands at the right where the curves end below its line, else at the left, where they are still above it.
    """
    low, high = axes.get_ylim()
    if "entropy" in floors:
        low = min(low, floors["entropy"] - 0.03 * (high - low))
        axes.set_ylim(low, high)
    heights = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    reached = max((values[len(values) * 3 // 5 :].max() for values in heights if len(values)), default=low)
    above = math.inf
    for name, level in sorted(floors.items(), key=lambda floor: -floor[1]):
        if name not in FLOOR_NAMES or not low <= level <= high:
            continue
        right = level > reached - 0.02 * (high - low)
        below = above - level < 0.05 * (high - low)  # no room for a name between this line and the one above
        axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)
        axes.annotate(
            f"{FLOOR_NAMES[name]} {level:.2f}", (1 if right else 0, level), xycoords=("axes fraction", "data"),
            xytext=(-3 if right else 3, -3 if below else 3), textcoords="offset points",
            ha="right" if right else "left", va="top" if below else "bottom", color=QUIET, fontsize=8.5,
        )  # fmt: skip
        above = level


def _legend(figure: "Figure", names: list[str], curves: list[dict[str, Array]]) -> None:
    """Above the panels: at the left which colour is which run, at the right which line is training or validation."""
    from matplotlib.lines import Line2D

    several = len(names) > 1
    ink = INK if several else COLOURS[0]
    style: dict[str, Any] = {"frameon": False, "fontsize": 9, "labelcolor": INK, "handlelength": 1.8}
    if several:
        colours = zip(names, itertools.cycle(COLOURS), strict=False)
        handles = [Line2D([], [], color=colour, linewidth=3, label=name) for name, colour in colours]
        columns = max(1, min(len(names), 90 // (max(map(len, names)) + 8)))
        figure.legend(handles=handles, loc="outside upper left", ncols=columns, **style)
    else:
        figure.suptitle(names[0], color=INK, fontsize=12, weight="bold", x=0.012, ha="left")
    handles = []
    if any("loss" in each for each in curves):
        handles.append(Line2D([], [], color=ink, linewidth=1.1, alpha=0.75, label="training (running mean)"))
    if any("val_loss" in each for each in curves):
        handles.append(Line2D([], [], color=ink, label="validation", **VALIDATION))
    figure.legend(handles=handles, loc="outside upper right", ncols=2, **style)


def write_figure(figure: "Figure", out: Path) -> Path:
    """Save by suffix; the same numbers give the same bytes (no date, fixed ids in SVG)."""
    from matplotlib import rc_context

    picture = io.BytesIO()
    svg = out.suffix.lower() == ".svg"
    with rc_context({"svg.hashsalt": "minigpt"}):
        figure.savefig(picture, format=out.suffix[1:].lower(), metadata={"Date": None} if svg else None)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise StorageError(f"cannot write {out} ({error.strerror}); name another file with --out") from None
    return out
