"""Draw an explanation with matplotlib, as PNG or SVG, for papers. It shows the same numbers as the page."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from minigpt.explanation.analysis import visible
from minigpt.explanation.canvas import (
    COLOURS,
    GRID,
    INK,
    QUIET,
    bare,
    drawable,
    in_font,
    new_figure,
    write_figure,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Picture = Literal["attention", "surprise", "lens", "stream"]
_FONT: dict[str, Any] = {"family": "monospace", "fontsize": 8, "parse_math": False}  # a token may be a $


def draw_explanation(explanation: dict[str, Any], out: str | Path, picture: Picture = "attention") -> Path:
    """Draw a part of an object of `explain` to a file that ends in .png or .svg; directories are made.

    Args:
        picture: attention (all heads), surprise (of each token, with its expected surprise), lens (the likeliest next
            token after each layer), or stream (mean length of the residual stream, and of what each part added).

    Raises:
        UserError: matplotlib is missing, or the suffix is not .png or .svg.
        StorageError: out cannot be written.
    """
    out, figure = drawable(out), new_figure(dpi=200)
    {"attention": _attention, "surprise": _surprise, "lens": _lens, "stream": _stream}[picture](figure, explanation)
    return write_figure(figure, out)


def _label(text: str) -> str:
    """The text of a token as a label: spaces are visible, and characters that the font lacks are codes."""
    return in_font(visible(text))


def _attention(figure: "Figure", explanation: dict[str, Any]) -> None:
    """Draw all heads, one row per layer; white means no attention."""
    attention, named = explanation["attention"], explanation["heads"]["named"]
    layers, heads, length = len(attention), len(attention[0]), len(explanation["ids"])
    figure.set_size_inches(1.25 * heads + 0.6, 1.4 * layers + 0.4)
    panels = figure.subplots(layers, heads, squeeze=False)
    for layer in range(layers):
        for head in range(heads):
            axes, weights = panels[layer, head], np.full((length, length), np.nan)
            for t, row in enumerate(attention[layer][head]):
                weights[t, : t + 1] = row
            axes.imshow(np.sqrt(weights), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            kind = named[layer][head]
            axes.set_title(f"{layer}.{head} {kind.replace('_token', '') if kind else ''}", fontsize=7, color=INK, pad=3)
            bare(axes, pad=4, labelsize=8)
            for side in ("left", "bottom"):
                axes.spines[side].set(visible=True, color=GRID)


def _surprise(figure: "Figure", explanation: dict[str, Any]) -> None:
    """Draw -ln p of each token as a bar, and the entropy of its prediction as a tick."""
    loss, entropy, texts = explanation["loss"], explanation["entropy"], [*map(_label, explanation["texts"])]
    figure.set_size_inches(max(4.0, 0.17 * len(texts) + 0.8), 2.4)
    axes, places = figure.subplots(), np.arange(1, len(texts))
    axes.bar(places, loss[1:], width=0.8, color=COLOURS[1], label="surprise")
    axes.hlines(entropy[:-1], places - 0.4, places + 0.4, color=INK, linewidth=1.2, label="expected (entropy)")
    level = max(map(len, texts)) == 1
    axes.set_xticks(range(len(texts)), texts, rotation=0 if level else 90, **_FONT)
    axes.set_ylabel("nats", color=INK, fontsize=9)
    axes.set_xlim(-0.6, len(texts) - 0.4)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK, ncols=2, loc="lower left", bbox_to_anchor=(0, 1))
    bare(axes, pad=4, labelsize=8)


def _lens(figure: "Figure", explanation: dict[str, Any]) -> None:
    """Draw the likeliest next token after each layer, for the last 24 positions; a frame marks correct predictions."""
    ids, lens, words = explanation["ids"], explanation["lens"], explanation["vocabulary"]
    first, rows = max(0, len(ids) - 24), len(lens["ids"])
    columns = range(first, len(ids))
    texts = [[_label(words[str(row[t][0])]) for t in columns] for row in lens["ids"]]
    wide = max(0.3, 0.085 * max(len(text) for row in texts for text in row) + 0.12)
    figure.set_size_inches(wide * len(columns) + 1.2, 0.3 * rows + 0.7)
    axes = figure.subplots()
    sure = np.array([[row[t][0] for t in columns] for row in lens["probs"]])
    axes.imshow(sure, cmap="Greens", vmin=0, vmax=1.5, aspect="auto")
    for layer, row in enumerate(texts):
        for place, text in enumerate(row):
            right = ids[first + place + 1 : first + place + 2] == [lens["ids"][layer][first + place][0]]
            frame: Any = {"edgecolor": INK, "facecolor": "none", "linewidth": 0.8, "pad": 2} if right else None
            axes.text(place, layer, text, ha="center", va="center", color=INK, bbox=frame, **_FONT)
    axes.set_xticks(range(len(columns)), [_label(explanation["texts"][t]) for t in columns], **_FONT)
    axes.set_yticks(range(rows), ["embedding", *(f"layer {layer}" for layer in range(rows - 1))], fontsize=8)
    axes.xaxis.tick_top()
    bare(axes, pad=4, labelsize=8)


def _stream(figure: "Figure", explanation: dict[str, Any]) -> None:
    """Draw means over all tokens: a line for the stream's length, bars for the length of what each part added."""
    stream, written = (np.array(explanation[key]).mean(1) for key in ("stream_norm", "written_norm"))
    figure.set_size_inches(max(4.0, 0.42 * len(stream) + 0.8), 2.6)
    axes, places = figure.subplots(), np.arange(len(stream))
    for name, chosen, colour in (
        ("embedding", places[:1], QUIET),
        ("attention", places[1::2], COLOURS[0]),
        ("feed-forward", places[2::2], COLOURS[3]),
    ):
        axes.bar(chosen, written[chosen], width=0.6, color=colour, label=f"{name} adds")
    axes.plot(places, stream, color=INK, marker="o", markersize=3.5, linewidth=1.4, label="length of the stream")
    names = ["emb", *(f"{part}\n{layer}" for layer in range(len(stream) // 2) for part in ("att", "ff"))]
    axes.set_xticks(places, names, fontsize=8)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.legend(frameon=False, fontsize=8, labelcolor=INK)
    bare(axes, pad=4, labelsize=8)
