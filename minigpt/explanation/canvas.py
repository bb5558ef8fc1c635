"""Share what all matplotlib pictures need: colours, figures, axes, labels that do not overlap, writing the file.

It uses matplotlib's objects instead of pyplot, so there is no global figure and every thread may draw. matplotlib is
an optional package, imported at first use.
"""

import io
import itertools
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigpt.errors import StorageError, UserError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")

# Okabe and Ito's colours, which colour-blind readers can distinguish; without yellow, which is too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000")
INK, QUIET, GRID = "#222222", "#767676", "#e8e8e8"


def drawable(out: str | Path) -> Path:
    """Check that a picture can be drawn to this file, before long measurements begin. Raises UserError."""
    out = Path(out)
    if out.suffix.lower() not in SUFFIXES:
        raise UserError(f"cannot draw {out.name}; name a file that ends in .png or .svg")
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        raise UserError("drawing needs matplotlib; install it with: pip install 'minigpt[plot]'") from None
    return out


def new_figure(width: float = 6.4, height: float = 4.8, dpi: int = 160) -> "Figure":
    """Make an empty white figure; width and height are in inches."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    layout = ConstrainedLayoutEngine(h_pad=0.08, w_pad=0.08)
    return Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")


def quiet(axes: "Axes", title: str = "", xlabel: str = "", grid: Literal["x", "y", "both"] = "y") -> None:
    """Give axes our style: only the bottom line of the frame, a faint grid, the title at the upper left."""
    axes.set_title(title, loc="left", color=INK, fontsize=10.5, pad=8, parse_math=False)  # a file may be called $^$
    axes.set_xlabel(xlabel, color=INK, fontsize=9.5)
    axes.grid(axis=grid, which="major", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    bare(axes, pad=6, labelsize=9)


def bare(axes: "Axes", *, pad: float, labelsize: float) -> None:
    """Remove the frame except its bottom line, and the ticks except their labels."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(QUIET)
    axes.tick_params(colors=QUIET, length=0, pad=pad, labelsize=labelsize, which="both")


def logarithmic(axes: "Axes", along: Literal["x", "y"] = "y") -> None:
    """Set a log scale with plain numbers as ticks: 10, 20, 50 instead of powers; 1.4, 1.6 on a short range."""
    from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    low, high = axes.dataLim.intervaly if along == "y" else axes.dataLim.intervalx
    axes.set(**{f"{along}scale": "log"})
    axis = axes.yaxis if along == "y" else axes.xaxis
    subs = (1, 2, 5) if high < 500 * low else (1,)
    axis.set_major_locator(MaxNLocator(6) if high < 8 * low else LogLocator(subs=subs, numticks=20))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}") if along == "y" else EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


def spread_out(places: Sequence[float], gap: float) -> list[float]:
    """Move sorted places so that all are at least a gap apart, and none is above 1 as long as there is room below.

    spread_out([0.2, 0.21, 1.0], 0.1) -> [0.2, 0.3, 1.0]; spread_out([0.98, 1.0], 0.1) -> [0.9, 1.0]
    """
    moved = list(itertools.accumulate(places, lambda below, place: max(place, below + gap)))
    ceiling = max(1.0, gap * (len(moved) - 1))
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    return moved


def in_font(text: str) -> str:
    """Replace characters that matplotlib's font does not have, or that are invisible, by their codes (U+0041).

    The font has Latin, Greek and Cyrillic, and the signs of `analysis.visible`.
    """
    seen = (char in "␣↵⇥␍" or (char < "\u0530" and unicodedata.category(char)[0] not in "CM") for char in text)
    return "".join(char if shown else f"U+{ord(char):04X}" for char, shown in zip(text, seen, strict=True))


def elided(name: str) -> str:
    """Shorten a name of more than 34 letters: "…" replaces its middle."""
    return name if len(name) <= 34 else f"{name[:17]}…{name[-17:]}"


def label_at_right(axes: "Axes", labels: list[tuple[float, str, str]], panel_height: float) -> None:
    """Write texts in a column at the right, each at the height of its value, moved apart if they would overlap.

    Args:
        axes: axes with their final limits.
        labels: (value on the vertical axis, text, colour).
        panel_height: approximate height of the axes in inches.
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
    """Write a figure as PNG or SVG. Equal figures give equal bytes (no date, fixed ids in SVG). Raises StorageError."""
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
