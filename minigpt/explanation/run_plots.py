"""Draw curves of one or more runs as one PNG or SVG, with panels for loss, perplexity, bits per byte, rates, speed.

Faint lines are the logged values, thin lines their running mean, bold lines with dots the validation. Perplexity is
exp of the loss curves; DPO's loss, per pair of answers, has none. Several seeds are drawn as one curve, their mean, in
a band of one sample standard deviation to both sides. Losses are in nats per token: compare them only between runs
with the same tokenizer. Bits per byte can be compared between all runs.

The vertical axis fits the values after the first tenth of a run. The fall at the start would flatten the rest.
"""

import itertools
import math
import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minigpt.errors import UserError, nearest
from minigpt.explanation.canvas import (
    COLOURS,
    INK,
    QUIET,
    drawable,
    elided,
    in_font,
    label_at_right,
    logarithmic,
    new_figure,
    quiet,
    write_figure,
)
from minigpt.explanation.metrics import (
    Array,
    combine,
    count_tokenizers,
    footnote,
    read_floors,
    read_metrics,
    smooth,
    units_of_losses,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Horizontal = Literal["step", "tokens", "minutes"]
What = Literal["loss", "perplexity", "bpb", "learning-rate", "gradient-norm", "throughput"]
Runs = str | Path | Sequence[str | Path | Sequence[str | Path]]


@dataclass(frozen=True)
class Panel:
    """The columns of metrics.jsonl that a panel shows; "" for none.

    noisy: drawn faint as logged, and as a running mean. exact: drawn as logged. evaluated: drawn bold, with dots.
    scale: from the column to the axis. wide: use a log axis if the values span a wide range.
    """

    title: str
    noisy: str = ""
    exact: str = ""
    evaluated: str = ""
    scale: Callable[[Array], Array] = lambda values: values
    wide: bool = False

    def shows(self, metrics: dict[str, Array]) -> bool:
        """Whether a run has logged one of the columns."""
        keys = (self.noisy, self.exact, self.evaluated)
        return any(bool(np.isfinite(metrics[key]).any()) for key in keys if key in metrics)


def _perplexity(loss: Array) -> Array:
    """exp(loss). A loss above 30 nats (a diverged run) becomes NaN, since it would flatten the other curves."""
    return np.exp(np.where(loss > 30, math.nan, loss))


PANELS: dict[What, Panel] = {
    "loss": Panel("loss, nats per token", noisy="loss", evaluated="val_loss"),
    "perplexity": Panel("perplexity", noisy="loss", evaluated="val_loss", scale=_perplexity, wide=True),
    "bpb": Panel("validation, bits per byte", evaluated="bits_per_byte"),
    "learning-rate": Panel("learning rate", exact="lr"),
    "gradient-norm": Panel("gradient norm, before clipping", noisy="grad_norm", wide=True),
    "throughput": Panel("training tokens per second", noisy="tokens_per_second"),
}
PER_TOKEN = ("loss", "perplexity")
AXES = {"step": "step", "tokens": "training tokens", "minutes": "minutes of training"}
STYLES = [(colour, line) for line in ("-", "--", ":") for colour in COLOURS]
VALIDATION: dict[str, Any] = {
    "linewidth": 2, "marker": "o", "markersize": 4.5, "markeredgecolor": "white", "markeredgewidth": 0.8
}  # fmt: skip
FLOOR_NAMES = {
    "uniform": "uniform",
    "unigram": "unigram",
    "five_gram": "5-gram",
    "xz": "xz",
    "entropy": "entropy of the source",
}


def plot_runs(
    runs: Runs,
    out: str | Path,
    *,
    what: Sequence[What] | Literal["all"] = PER_TOKEN,
    x: Horizontal = "step",
) -> Path:
    """Draw the curves of several runs in the same panels, one panel for each of `what`. Returns the file.

    Values that a run has not logged are left out with a warning.

    Args:
        runs: one or several run directories. A list inside the list is drawn as one curve, the mean, with a band.
            Floors are drawn if they are equal in the eval.json of all runs.
        out: file to write, .png or .svg; its directory is made if missing.
        what: keys of PANELS. "all" means those that any run has logged and that can be compared between the runs.
        x: what the horizontal axis shows.

    Raises:
        RunError: no such run, no metrics, a damaged line (see `read_metrics`).
        UserError: matplotlib is missing, the suffix is not .png or .svg, no run has logged one of `what` or x, or
            losses per token were asked for although the tokenizers differ.
        StorageError: out cannot be written.
    """
    out = drawable(out)
    groups = run_groups(runs)
    paths = [path for group in groups for path in group]
    curves = [[read_metrics(path) for path in group] for group in groups]
    names = group_names(groups)
    units = units_of_losses(paths)
    drawn = _chosen(what, names, curves, count_tokenizers(paths))
    chosen: list[What] = [key for key in drawn if key != "perplexity" or "pair" not in units]
    if not chosen:
        raise UserError("a loss per pair of answers (DPO) has no perplexity; draw --what loss")
    floors = {key: _common([read_floors(path, key == "bpb") for path in paths]) for key in ("loss", "bpb")}
    return write_figure(draw_runs(names, curves, floors, x, chosen, footnote(paths), " or ".join(units)), out)


def run_groups(runs: Runs) -> list[list[Path]]:
    """The runs of each curve. Raises UserError if there are none."""
    if not runs:
        raise UserError("nothing to plot; give at least one run")
    if isinstance(runs, str | Path):
        runs = [runs]
    return [[Path(run)] if isinstance(run, str | Path) else [Path(each) for each in run] for run in runs]


def _chosen(
    what: Sequence[What] | Literal["all"], names: list[str], curves: list[list[dict[str, Array]]], tokenizers: int
) -> list[What]:
    """Choose the panels to draw, and warn about runs that are missing in one of them. See `plot_runs`."""
    wanted: list[What] = list(PANELS) if what == "all" else list(dict.fromkeys(what))
    for key in wanted:
        if key not in PANELS:
            raise UserError(f"no such picture: {key}; {nearest(key, PANELS)}")
    if tokenizers > 1 and set(wanted) & set(PER_TOKEN):
        message = f"the runs have {tokenizers} tokenizers: losses per token do not compare"
        if what != "all":
            raise UserError(f"{message}; draw bits per byte, --what bpb")
        warnings.warn(f"{message}; they are left out", stacklevel=3)
        wanted = [key for key in wanted if key not in PER_TOKEN]
    chosen = []
    for key in wanted:
        missing = [
            name
            for name, group in zip(names, curves, strict=True)
            if not all(PANELS[key].shows(metrics) for metrics in group)
        ]
        if len(missing) == len(names):
            if what != "all":
                one = "the run has not" if len(names) == 1 else "none of the runs has"
                raise UserError(f"{one} logged {_named(key)}; leave it out of --what")
            continue
        if missing:
            warnings.warn(f"not logged, left out of {_named(key)}: {', '.join(missing)}", stacklevel=3)
        chosen.append(key)
    if not chosen:
        raise UserError("the runs have logged nothing that can be drawn; train them further")
    return chosen


def _named(key: What) -> str:
    return {"bpb": "bits per byte"}.get(key, key.replace("-", " "))


def _common(floors: list[dict[str, float]]) -> dict[str, float]:
    """The floors, if all runs have the same ones, else {}. They depend on the text, which may differ."""
    return floors[0] if all(each == floors[0] for each in floors) else {}


def group_names(groups: Sequence[Sequence[Path]]) -> list[str]:
    """Names of curves: the run's name, or for several seeds the beginning that their names share.

    [[lr-1-seed-1, lr-1-seed-2]] -> ["lr-1 (2 seeds)"]
    """
    short = iter(short_names([path for group in groups for path in group]))
    names = []
    for group in groups:
        own = list(itertools.islice(short, len(group)))
        stem = os.path.commonprefix(own)  # noqa: RUF071 - of the letters, not of folders
        stem = re.sub(r"(?:[-_=,. ]|seed)+\d*$", "", stem)
        several = f"{stem or own[0]} ({len(own)} seeds)"
        names.append(own[0] if len(own) == 1 else several)
    return names


def short_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that are all different: [a/x, b/x] -> ["a/x", "b/x"]; [a/x, a/y] -> ["x", "y"]."""
    parts = [path.resolve().parts for path in paths]
    length = 1
    while length < max(map(len, parts)) and len({each[-length:] for each in parts}) < len(set(parts)):
        length += 1
    return ["/".join(each[-length:]) for each in parts]


def draw_runs(
    names: list[str],
    curves: list[list[dict[str, Array]]],
    floors: dict[str, dict[str, float]],
    x: Horizontal = "step",
    what: Sequence[What] = PER_TOKEN,
    note: str = "",
    unit: str = "token",
) -> "Figure":
    """Draw the figure: one panel for each of `what`, and a note below the panels. See `plot_runs`.

    `curves` has, for each name, the metrics of its seeds; `unit` is what a loss is divided by.
    """
    names = [in_font(name) for name in names]
    shown_in = PANELS | {"loss": replace(PANELS["loss"], title=f"loss, nats per {unit}")}
    columns = len(what) if len(what) <= 2 else 2 if len(what) == 4 else 3
    rows = math.ceil(len(what) / columns)
    width, height = (5.5, 4.2) if rows == 1 and columns <= 2 else (4.5, 3.0)
    figure = new_figure(width * columns + 1.5 * (columns == 1), height * rows + 0.4)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for spare in panels[len(what) :]:
        spare.remove()
    unnamed = set(names) if len(names) > 1 else set()
    right, rest = columns - 1, [index for index in range(len(what)) if index != columns - 1]
    for index in (right, *rest):  # names are at the figure's right end if a curve is there, else in its first panel
        axes, key = panels[index], what[index]
        panel, ends = shown_in[key], []
        for name, group, (colour, line) in zip(names, curves, itertools.cycle(STYLES), strict=False):
            mean, deviation = combine(group)
            if not all(panel.shows(metrics) for metrics in group):
                continue
            along = _horizontal(name, mean, x)
            end = _curves(axes, panel, along, mean, deviation, {"color": colour, "linestyle": line})
            shown = [] if panel.exact else [_figure(end)]
            shown += [elided(name)] if name in unnamed else []
            if shown and math.isfinite(end):
                unnamed.discard(name)
                ends.append((end, "  ".join(shown), colour))
        _finish(axes, panel, x, floors.get(key, {}))
        label_at_right(axes, ends, height - 0.7)
    _legend(figure, names, curves, [PANELS[key] for key in what])
    if note:
        figure.supxlabel(note, color=QUIET, fontsize=9, x=0.012, ha="left")
    return figure


def _horizontal(name: str, metrics: dict[str, Array], x: Horizontal) -> Array:
    key = "seconds" if x == "minutes" else x
    if key not in metrics:
        raise UserError(f"{name} has not logged {key}; plot it over step")
    if not len(metrics[key]):
        raise UserError(f"the runs of {name} have no step in common; draw them with --seeds lines")
    return metrics[key] / 60 if x == "minutes" else metrics[key]


def _curves(
    axes: "Axes", panel: Panel, along: Array, mean: dict[str, Array], deviation: dict[str, Array], style: dict[str, Any]
) -> float:
    """Draw one run, or the mean of several with a band around the last curve. Returns the last value of that curve."""
    nothing = np.full(len(along), math.nan)
    end = middle = spread = at = nothing

    def values(key: str) -> tuple[Array, Array, Array]:
        column = mean.get(key, nothing)
        there = np.isfinite(column) & np.isfinite(along)
        return along[there], column[there], deviation.get(key, nothing)[there]

    if panel.noisy:
        at, column, spread = values(panel.noisy)
        middle, spread = (smooth(each, len(column) // 40) for each in (column, spread))
        if not deviation:
            axes.plot(at, panel.scale(column), alpha=0.18, linewidth=0.8, zorder=2, **style)
        end = panel.scale(middle)
        axes.plot(at, end, alpha=0.75, linewidth=1.1, zorder=3, **style)
    if panel.exact:
        at, middle, spread = values(panel.exact)
        end = panel.scale(middle)
        axes.plot(at, end, linewidth=1.6, zorder=3, **style)
    if panel.evaluated and np.isfinite(mean.get(panel.evaluated, nothing)).any():
        at, middle, spread = values(panel.evaluated)
        dots: dict[str, Any] = VALIDATION if len(at) <= 50 else VALIDATION | {"marker": ""}
        end = panel.scale(middle)
        axes.plot(at, end, zorder=4, clip_on=False, **dots, **style)
    if deviation:
        low, high = panel.scale(middle - spread), panel.scale(middle + spread)
        axes.fill_between(at, low, high, color=style["color"], alpha=0.18, linewidth=0, zorder=2)
    return float(end[-1]) if len(end) else math.nan


def _figure(value: float) -> str:
    """Format a number: 1.47, 12,345, or 9.2e-05 if it is small."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.2g}"


def _finish(axes: "Axes", panel: Panel, x: Horizontal, floors: dict[str, float]) -> None:
    """Set scales, ticks and floors after the curves are drawn."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

    if panel.evaluated:
        _after_the_start(axes)
    low, high = axes.dataLim.intervaly[0], axes.get_ylim()[1]
    if panel.wide and low > 0 and high > 8 * low:
        logarithmic(axes)
    elif panel.exact or panel.noisy == "tokens_per_second":
        axes.set_ylim(bottom=0)
    if panel.noisy == "tokens_per_second":
        axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    quiet(axes, panel.title, AXES[x])
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    elif x == "step":
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 2.5, 5, 10]))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.tick_params(labelbottom=True)  # shared axes would hide the inner ones
    axes.margins(x=0.01)
    _floors(axes, floors)


def _after_the_start(axes: "Axes") -> None:
    """End the axis just above the highest value after the first tenth of the curves; higher values are cut off."""
    begin, end = axes.dataLim.intervalx
    late = [0.9 * begin + 0.1 * end <= np.asarray(line.get_xdata(), float) for line in axes.get_lines()]
    values = [np.asarray(line.get_ydata(), float)[there] for line, there in zip(axes.get_lines(), late, strict=True)]
    shown = np.concatenate([each[np.isfinite(each)] for each in values]) if values else np.zeros(0)
    low, high = axes.dataLim.intervaly
    if not len(shown) or shown.max() >= high:
        return
    room = 0.05 * ((shown.max() - low) or high - low)
    axes.set_ylim(low - min(room, low / 2) if low > 0 else low - room, shown.max() + room)  # a log axis has no zero
    for line in axes.get_lines():
        line.set_clip_on(True)


def _floors(axes: "Axes", floors: dict[str, float]) -> None:
    """Draw dashed lines at the floors that are inside the axis.

    The axis is extended to the entropy of the source, or else to the next floor that the curves have not reached. The
    name of a floor is at the right if the curves end below its line; else it is under the line at the left.
    """
    low, high = axes.get_ylim()
    known = [level for name, level in floors.items() if name in FLOOR_NAMES]
    goal = floors.get("entropy", max((level for level in known if level < axes.dataLim.intervaly[0]), default=high))
    low = min(low, goal - 0.12 * (high - low))
    axes.set_ylim(low, high)
    heights = [np.asarray(line.get_ydata(), float) for line in axes.get_lines()]
    reached = max((values[len(values) * 3 // 5 :].max() for values in heights if len(values)), default=low)
    above = math.inf
    for name, level in sorted(floors.items(), key=lambda floor: -floor[1]):
        if name not in FLOOR_NAMES or not low <= level <= high:
            continue
        right = level >= reached
        below = not right or above - level < 0.05 * (high - low)  # no room between this line and the one above
        axes.axhline(level, color=QUIET, linewidth=0.9, linestyle=(0, (4, 3)), alpha=0.8, zorder=1)
        axes.annotate(
            f"{FLOOR_NAMES[name]} {level:.2f}", (1 if right else 0, level), xycoords=("axes fraction", "data"),
            xytext=(-3 if right else 3, -3 if below else 3), textcoords="offset points",
            ha="right" if right else "left", va="top" if below else "bottom", color=QUIET, fontsize=8.5,
        )  # fmt: skip
        above = level


def _legend(figure: "Figure", names: list[str], curves: list[list[dict[str, Array]]], panels: Sequence[Panel]) -> None:
    """Draw above the panels: at the left the run's name if there is only one, at the right the legend of the lines."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    ink = INK if len(names) > 1 else COLOURS[0]
    if len(names) == 1:
        figure.suptitle(names[0], color=INK, fontsize=12, weight="bold", x=0.012, ha="left", parse_math=False)
    columns = {key for group in curves for metrics in group for key in metrics}
    handles: list[Any] = []
    if any(panel.noisy in columns for panel in panels):
        handles.append(Line2D([], [], color=ink, linewidth=1.1, alpha=0.75, label="training (running mean)"))
    if any(panel.evaluated in columns for panel in panels):
        handles.append(Line2D([], [], color=ink, label="validation", **VALIDATION))
    if any(len(group) > 1 for group in curves):
        handles.append(Patch(color=ink, alpha=0.18, linewidth=0, label="± standard deviation of the seeds"))
    figure.legend(
        handles=handles, loc="outside upper right", ncols=3, frameon=False, fontsize=9, labelcolor=INK, handlelength=1.8
    )
