"""Read the measurements, and draw the important ones over time.

    python benchmarks/history.py        writes docs/history.svg and docs/normal-loss.svg

`history.jsonl` has every measurement, one object per line: date (of the commit), claim, commit, command, hardware,
figure (a number), unit; some have values (one per seed or repetition), also (other figures of the same run) and note.
The newest of each claim is also a row of RESULTS.md: add a measurement to both.
"""

import argparse
import json
import re
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.dates import DateFormatter, DayLocator
from matplotlib.figure import Figure

ROOT = Path(__file__).parent.parent
HISTORY, RESULTS = ROOT / "benchmarks" / "history.jsonl", ROOT / "RESULTS.md"
KEYS = ("date", "claim", "commit", "command", "hardware", "figure", "unit")
"""The keys of every line."""
DRAWN = {
    "demo, start to end": "Demo: seconds from start to end",
    "shakespeare-char, loss": "shakespeare-char: loss",
    "shakespeare-char-cpu, loss": "shakespeare-char-cpu: loss",
    "speed of training: gpt2 6 x 384, context 256, batch 8": "Training, 6 x 384: tokens/s",
    "speed of generation: GPT-2 124M, bf16, batch 1": "Generation, 124M, bf16: tokens/s",
    "speed of generation: GPT-2 124M, int8, batch 1": "Generation, 124M, int8: tokens/s",
}
"""The claims that are drawn, each with the title of its panel."""
MACHINES = {
    "Zen 4": "#0072b2",
    "Zen 3": "#009e73",
    "Sapphire Rapids": "#d55e00",
    "2.8 GHz Xeon": "#cc79a7",
    "AMD EPYC (avx512_bf16)": "#56b4e9",
}
"""A part of `hardware` that identifies a kind of machine, with its colour (from Okabe and Ito, easy to tell apart)."""

BANDS, CPU_STEPS = ("a59fd96", "2c84d3a"), 700
"""Commits with three seeds of shakespeare-char-cpu in its present form, and the steps of the recipe."""
EPOCHS = (
    ("epochs of tiny-6.7m", "#d55e00", "the recipe; 81,920 easier tokens"),
    ("ten epochs of tiny-6.7m with dropout 0.1", "#009e73", "dropout 0.1; the whole text"),
)
"""Claims with a curve over epochs, their colours, and their names in the legend."""
BEGINNINGS = ("tiny-6.7m", "wikitext2-22m", "small-25m")
"""Recipes of which three seeds were trained for their first part."""


@dataclass(frozen=True)
class Row:
    """One row of RESULTS.md."""

    section: str
    claim: str
    command: str
    machine: str
    figure: str
    commit: str


def history(path: Path = HISTORY) -> list[dict[str, Any]]:
    """Every measurement, in the order of their commits."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def results(path: Path = RESULTS) -> list[Row]:
    """Every row of RESULTS.md whose table has the five columns of a claim."""
    found, section = [], ""
    for line in path.read_text(encoding="utf-8").splitlines():
        section = line.removeprefix("## ") if line.startswith("## ") else section
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line.startswith("| ") else []
        if len(cells) == 5 and cells[0] != "claim":
            found.append(Row(section, *cells))
    return found


def first_number(text: str) -> tuple[float, int]:
    """(4046.0, 0) from "4,046 tokens/s": the number, and how many digits follow its point. Raises ValueError."""
    found = re.match(r"\d[\d,]*(?:\.(\d+))?(?:e-\d+)?", text)
    if not found:
        raise ValueError(f"{text!r} does not begin with its figure")
    return float(found[0].replace(",", "")), len(found[1] or "")


def measured(row: Row, known: list[dict[str, Any]]) -> bool:
    """Whether a line of the history has the row's figure, measured at the row's commit."""
    shown, digits = first_number(row.figure)
    figures = [one["figure"] for one in known if one["commit"] == row.commit]
    return any(figure == shown or (digits and round(figure, digits) == shown) for figure in figures)


def machine(hardware: str) -> str:
    """The kind of machine; "other" for one without a colour."""
    return next((name for name in MACHINES if name in hardware), "other")


def draw(known: list[dict[str, Any]]) -> Figure:
    """One panel for each claim of DRAWN: figures by date, with a colour for each kind of machine."""
    figure = Figure(figsize=(9, 7.5), layout="constrained")
    for axes, (claim, title) in zip(figure.subplots(3, 2).flat, DRAWN.items(), strict=True):
        draw_claim(axes, [one for one in known if one["claim"] == claim], title)
    handles = [figure.axes[0].plot([], [], "o", color=colour, label=name)[0] for name, colour in MACHINES.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def draw_claim(axes: Axes, points: list[dict[str, Any]], title: str) -> None:
    """The measurements of one claim; the newest of each machine shows its figure."""
    for name, colour in [*MACHINES.items(), ("other", "#777777")]:
        mine = [one for one in points if machine(one["hardware"]) == name]
        if not mine:
            continue
        days = [datetime.fromisoformat(one["date"]) for one in mine]
        axes.plot(days, [one["figure"] for one in mine], "o", color=colour, markersize=5, alpha=0.8)  # pyright: ignore[reportArgumentType]  dates are drawn
        newest = (days[-1], mine[-1]["figure"])
        axes.annotate(f"{mine[-1]['figure']:g}", newest, xytext=(6, 0), textcoords="offset points", fontsize=8)  # pyright: ignore[reportArgumentType]
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15, y=0.2)
    axes.xaxis.set_major_locator(DayLocator(interval=2))
    axes.xaxis.set_major_formatter(DateFormatter("%d %b"))
    axes.tick_params(labelsize=8)


def draw_normal(known: list[dict[str, Any]]) -> Figure:
    """Normal losses: shakespeare-char-cpu by its steps, tiny-6.7m by epochs, and the first steps of other recipes."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    upper, lower = figure.subfigures(2, 1)
    left, right = upper.subplots(1, 2)
    for one in known:
        if one["commit"] in BANDS and one["claim"].startswith("shakespeare-char-cpu, loss"):
            steps = int(found[1]) if (found := re.search(r"max-steps (\d+)", one["command"])) else CPU_STEPS
            left.plot([steps] * 2, [min(one["values"]), max(one["values"])], color="#0072b2", linewidth=5, alpha=0.4)
            left.plot(steps, one["figure"], "o", color="#0072b2")
            left.annotate(f"{one['figure']:.3f}", (steps, one["figure"]), xytext=(8, 0), textcoords="offset points")
    left.set_xlabel("steps of the run")
    left.set_title("shakespeare-char-cpu: loss, mean and range of 3 seeds", fontsize=10, loc="left")
    for claim, colour, label in EPOCHS:
        one = next(one for one in known if one["claim"] == claim and "epoch" in one["also"])
        right.plot(one["also"]["epoch"], one["also"]["validation perplexity"], "o-", color=colour, label=label)
    right.set_xlabel("epochs")
    right.set_title("tiny-6.7m: perplexity of the validation text, one seed", fontsize=10, loc="left")
    right.legend(frameon=False, fontsize=9)
    for axes, recipe in zip(lower.subplots(1, 3), BEGINNINGS, strict=True):
        draw_beginning(
            axes, next(one for one in known if one["claim"] == f"beginning of {recipe}: three seeds"), recipe
        )
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.12, y=0.12)
    return figure


def draw_beginning(axes: Axes, measured: dict[str, Any], recipe: str) -> None:
    """The training losses of a recipe's first steps: mean and range of the seeds, and the validation losses."""
    also = measured["also"]
    seeds = list(zip(*also["training loss"], strict=True))
    axes.fill_between(also["step"], [min(each) for each in seeds], [max(each) for each in seeds], color="#0072b2",
                      alpha=0.4, linewidth=0)  # fmt: skip
    axes.plot(also["step"], [sum(each) / len(each) for each in seeds], color="#0072b2", label="training")
    for index, step in enumerate(also["validated at"]):
        losses = [seed[index] for seed in also["validation loss"]]
        axes.plot([step] * len(losses), losses, "_", color="#d55e00", markersize=9, label="" if index else "validation")
    axes.set_title(f"{recipe}: loss, 3 seeds", fontsize=10, loc="left")
    axes.set_xlabel("steps")
    axes.legend(frameon=False, fontsize=9)


def save(figure: Figure, out: Path) -> None:
    """Write an SVG whose words stay text; the same figures give the same bytes."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "minigpt"}):
        figure.savefig(out, metadata={"Date": None} if out.suffix == ".svg" else None, facecolor="white")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="folder of the pictures")
    given = parser.parse_args()
    for name, made in (("history.svg", draw(history())), ("normal-loss.svg", draw_normal(history()))):
        save(made, given.out / name)
        print(given.out / name)
