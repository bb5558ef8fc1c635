"""What pictures share: colours, a figure without a window, quiet axes, labels that keep apart, the file at the end.

matplotlib's objects, not pyplot: no global figure, safe in any thread. It is an extra, imported when first needed.
"""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigpt.errors import StorageError, UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, told apart by colour-blind readers; yellow is left out, too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, QUIET, GRID = "#222222", "#767676", "#e8e8e8"


def drawable(out: str | Path) -> Path:
    """The file, where it can be drawn to: asked before minutes of counting. Raises UserError."""
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {out.name}; name a file that ends in .png or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("drawing needs matplotlib; install it with: pip install 'minigpt[plot]'") from None
    return out


def new_figure(width: float = 6.4, height: float = 4.8, dpi: int = 160) -> "Figure":
    """An empty white figure, in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    return Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")


def quiet(axes: "Axes", title: str = "", xlabel: str = "", grid: Literal["x", "y", "both"] = "y") -> None:
    """No frame but the ground line, a faint grid, the title at the left above."""
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=8)
    axes.set_xlabel(xlabel, color=INK, fontsize=9.5)
    axes.grid(axis=grid, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes, pad=6, labelsize=9)


def bare(axes: "Axes", *, pad: float, labelsize: float) -> None:
    """No frame but the ground line, and no ticks, only their labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, length=0, pad=pad, labelsize=labelsize, which="both")


def logarithmic(axes: "Axes", along: Literal["x", "y"] = "y") -> None:
    """A log scale whose ticks are plain numbers: 4, 10, 20, 40 rather than powers; 1.4, 1.6 of a short range."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.dataLim.intervaly if along == "y" else axes.dataLim.intervalx
    axes.set(**{f"{along}scale": "log"})
    axis = axes.yaxis if along == "y" else axes.xaxis
    subs = (1, 2, 5) if high < 500 * low else (1,)
    axis.set_major_locator(MaxNLocator(6) if high < 8 * low else LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}") if along == "y" else EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Places in order, moved so that all are a gap apart and none is above 1 while there is room below.

    spread_out([0.2, 0.21, 1.0], 0.1) -> [0.2, 0.3, 1.0]; spread_out([0.98, 1.0], 0.1) -> [0.9, 1.0]
    """
    moved = list(itertools.accumulate(places, lambda below, place: max(place, below + gap)))
    ceiling = max(1.0, gap * (len(moved) - 1))
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def elided(name: str, most: int = 34) -> str:
    """A name that leaves room for the picture: its middle left out where it is long."""
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-most // 2 :]}"


def label_at_right(axes: "Axes", labels: list[tuple[float, str, str]], panel_height: float) -> None:
    """Texts in a column at the right, each beside its height, moved apart where they would cover each other.

    Args:
        axes: with its final limits.
        labels: (value on the vertical axis, text, colour).
        panel_height: of the axes in inches, about.
    """
    from matplotlib.colors import to_rgb

    def height(value: float) -> float:
        return float(axes.transAxes.inverted().transform(axes.transData.transform((0, value)))[1])

    labels = sorted(labels)
    line = min(12.0, 72 * panel_height / max(1, len(labels)))  # points
    places = spread_out([height(value) for value, *_ in labels], line / (72 * panel_height))
    for place, (_, text, colour) in zip(places, labels, strict=True):
        axes.annotate(
            text, (1, place), xycoords="axes fraction", xytext=(6, 0), textcoords="offset points", va="center",
            color=[0.8 * part for part in to_rgb(colour)], fontsize=0.74 * line, weight="bold",
            annotation_clip=False, parse_math=False,
        )  # fmt: skip


def write_figure(figure: "Figure", out: Path) -> Path:
    """Save by suffix; the same numbers give the same bytes (no date, fixed ids in SVG). Raises StorageError."""
    from matplotlib import rc_context

    picture = io.BytesIO()
    svg = out.suffix.lower() == ".svg"
    about: dict[str, Any] | None = {"Date": None} if svg else None
    with rc_context({"svg.hashsalt": "minigpt"}):
        figure.savefig(picture, format=out.suffix[1:].lower(), metadata=about)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_bytes(picture.getvalue())
    except OSError as error:
        raise StorageError(f"cannot write {out} ({error.strerror}); name another file") from None
    return out
