"""Draw pictures of a text and of tokenizers from the counts of `minigpt data inspect` and `minigpt tokenizer`."""

import itertools
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from minigpt.explanation.canvas import (
    COLOURS,
    INK,
    QUIET,
    drawable,
    in_font,
    logarithmic,
    new_figure,
    quiet,
    write_figure,
)
from minigpt.explanation.run_plots import short_names
from minigpt.layout import TOKENIZER

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from minigpt.tokenizers import Tokenizer

WORDS = 200
"""Smallest number of tokens for which Zipf's law is drawn: it is about whole words, which small vocabularies lack."""
LONG = 16
"""Tokens of this many bytes or more share the last bar."""
SHARES = {"after a space": COLOURS[0], "within a word, or a mark": COLOURS[4], "part of a character": QUIET}


def draw_text(report: Mapping[str, Any], out: str | Path) -> Path:
    """Draw a report of `inspect_data`: tokens by rank, lines and documents by length, characters.

    Documents are not drawn if the text is one document; tokens are not drawn if they were not counted.

    Raises:
        UserError: matplotlib is missing, or the suffix is not .png or .svg. StorageError: out cannot be written.
    """
    out = drawable(out)
    panels: list[Any] = [partial(_draw_ranks, tokens=report["tokens"])] if report["tokens"] else []
    if sum(report["document_length"]["counts"]) > len(report["splits"]):
        panels.append(partial(_draw_lengths, what="documents", lengths=report["document_length"]))
    panels.append(partial(_draw_lengths, what="lines", lengths=report["line_length"]))
    panels.append(partial(_draw_characters, characters=report["characters"]))
    columns = 2 if len(panels) == 4 else len(panels)
    figure = new_figure(5.2 * columns, 3.9 * len(panels) // columns + 0.4)
    name = in_font(report["source"])
    figure.suptitle(name, color=INK, fontsize=12, weight="bold", x=0.012, ha="left", parse_math=False)
    for axes, draw in zip(figure.subplots(len(panels) // columns, columns).ravel(), panels, strict=True):
        draw(axes)
    return write_figure(figure, out)


def _draw_ranks(axes: "Axes", tokens: Mapping[str, Any]) -> None:
    """Draw how often the n-th most frequent token occurs, on log axes; with Zipf's law if the vocabulary is large."""
    ranks, counts = np.array(tokens["ranks"], float).T
    axes.loglog(ranks, counts, color=COLOURS[0], linewidth=2, zorder=3)
    if tokens["used"] >= WORDS:
        slope, level = np.polyfit(np.log(ranks), np.log(counts), 1)
        axes.plot(ranks, np.exp(level) * ranks**slope, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=2)
        axes.annotate(
            f"count ∝ rank$^{{{slope:.2f}}}$   (Zipf: $-1$)", (0.98, 0.97), xycoords="axes fraction", ha="right",
            va="top", color=INK, fontsize=9.5,
        )  # fmt: skip
    for rank in (1, 10):
        if rank <= len(tokens["top"]):
            text, _, count = tokens["top"][rank - 1]
            axes.plot([rank], [count], "o", color=COLOURS[0], markersize=4.5, zorder=4)
            axes.annotate(
                in_font(repr(text)), (rank, count), xytext=(-4, -6), textcoords="offset points", va="top",
                ha="right" if rank > 1 else "left", color=INK, fontsize=9, parse_math=False,
            )  # fmt: skip
    quiet(axes, f"how often the n-th most frequent of {tokens['used']:,} tokens occurs", "n", grid="both")


def _draw_lengths(axes: "Axes", what: str, lengths: Mapping[str, Any]) -> None:
    """Draw a histogram, on a log axis if the longest are over ten times the shortest."""
    from matplotlib.ticker import EngFormatter

    counts, edges = lengths["histogram"]["counts"], np.array(lengths["histogram"]["edges"])
    axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=COLOURS[0], edgecolor="white", linewidth=0.6)
    if edges[-1] > 10 * edges[0]:
        logarithmic(axes, "x")
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    empty = f", {lengths['counts'][0]:,} empty" if lengths["counts"][0] else ""
    quiet(axes, f"{what} by length: mean {lengths['mean']:,.0f}, longest {lengths['longest']:,}{empty}", "characters")


def _draw_characters(axes: "Axes", characters: Mapping[str, Any]) -> None:
    from matplotlib.ticker import EngFormatter

    names = [in_font(repr(char) if char in " \n\t\r" else char) for char, _ in characters["top"]]
    axes.bar(range(len(names)), [count for _, count in characters["top"]], width=0.8, color=COLOURS[0])
    level = all(len(name) < 4 for name in names)
    axes.set_xticks(range(len(names)), names, rotation=0 if level else 90, parse_math=False)
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    quiet(axes, f"the most frequent of {characters['distinct']:,} characters")


def draw_tokenizer(tokenizer: "Tokenizer", out: str | Path) -> Path:
    """Draw a vocabulary: the number of tokens by their length in bytes and by kind. Special tokens are left out.

    Raises:
        UserError: matplotlib is missing, or the suffix is not .png or .svg. StorageError: out cannot be written.
    """
    out, figure = drawable(out), new_figure(7.5, 4.2)
    axes, pieces = figure.subplots(), [tokenizer.token_bytes(id_) for id_ in range(tokenizer.vocab_size)]
    pieces = [piece for piece in pieces if piece]
    longest = min(LONG, max(map(len, pieces)))
    below = np.zeros(longest)
    for share, colour in SHARES.items():
        lengths = [min(len(piece), longest) for piece in pieces if _share(piece) == share]
        counts = np.bincount(lengths, minlength=longest + 1)[1:]
        if counts.any():
            axes.bar(range(1, longest + 1), counts, bottom=below, width=0.86, color=colour, label=share)
        below += counts
    over = max(map(len, pieces)) > LONG
    ticks = range(1, longest + 1)
    axes.set_xticks(ticks, [f"{length}+" if over and length == LONG else str(length) for length in ticks])
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.legend(frameon=False, fontsize=9, labelcolor=INK, loc="upper right")
    mean = sum(map(len, pieces)) / len(pieces)
    title = f"{len(pieces):,} {tokenizer.kind} tokens by length: mean {mean:.1f}, longest {max(map(len, pieces)):,}"
    quiet(axes, title, "bytes")
    return write_figure(figure, out)


def _share(piece: bytes) -> str:
    spaced, within, broken = SHARES
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        return broken
    return spaced if text[0].isspace() and len(text) > 1 else within


def draw_tokenizers(rows: Sequence[dict[str, Any]], out: str | Path, text: str = "") -> Path:
    """Draw bytes per token over the size of the vocabulary, one dot for each row of `minigpt tokenizer compare`.

    Dots of the same kind are joined, to show the gain from a larger vocabulary.

    Args:
        rows: each with name, kind, vocab_size and bytes_per_token.
        out: file to write, .png or .svg.
        text: name of the encoded text, for the title.

    Raises:
        UserError: matplotlib is missing, or the suffix is not .png or .svg. StorageError: out cannot be written.
    """
    out, figure = drawable(out), new_figure(7.5, 4.6)
    axes = figure.subplots()
    paths = [Path(row["name"].removesuffix(TOKENIZER)) for row in rows]
    names = [in_font(name) for name in short_names(paths)]
    ordered = sorted(rows, key=lambda row: (row["kind"], row["vocab_size"]))
    kinds = itertools.groupby(ordered, key=lambda row: row["kind"])
    for (_, members), colour in zip(kinds, itertools.cycle(COLOURS), strict=False):
        sizes, packed = zip(*((row["vocab_size"], row["bytes_per_token"]) for row in members), strict=True)
        axes.plot(sizes, packed, color=colour, marker="o", markersize=7, linewidth=1.6, markeredgecolor="white")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    for name, row in zip(names, rows, strict=True):
        axes.annotate(
            f"{name}  {row['bytes_per_token']:.2f}", (row["vocab_size"], row["bytes_per_token"]), xytext=(8, -3),
            textcoords="offset points", va="top", color=INK, fontsize=9, parse_math=False,
        )  # fmt: skip
    axes.margins(0.14)
    quiet(axes, f"bytes per token{f' of {in_font(text)}' if text else ''}", "size of the vocabulary", grid="both")
    return write_figure(figure, out)
