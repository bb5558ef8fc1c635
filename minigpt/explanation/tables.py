"""Show a survey of a text, or a model's changes during training, as tables for a terminal of 80 columns or more."""

from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from minigpt.console import counted
from minigpt.explanation.analysis import token_text, visible
from minigpt.explanation.heads import KINDS, NAMED_FROM
from minigpt.tokenizers import Tokenizer

_ROWS = 10


def show_survey(survey: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield the parts of an object of `dataset.survey`, each with a title that says what it shows."""
    yield f"{counted(survey['tokens'], 'token')} of the validation text, {survey['loss']:.4f} nats each\n"
    places = survey["loss_by_position"]
    starts = [start for start in (0, *(2**power for power in range(20))) if start < len(places)]
    rows = []
    for start, end in zip(starts, [*starts[1:], len(places)], strict=True):
        mean = sum(places[start:end]) / (end - start)
        rows.append((_range(start + 1, end), f"{mean:.3f}", _bar(mean, places[0])))  # 1 token is before places[0]
    yield _part("By position in the context: more text before a token helps", ("tokens before", "nats", ""), rows)
    most = max(row["loss"] for row in survey["loss_by_frequency"])
    rows = [
        (_range(row["seen_from"], row["seen_to"]), f"{row['tokens']:,}", f"{row['loss']:.3f}", _bar(row["loss"], most))
        for row in survey["loss_by_frequency"]
    ]
    yield _part("By how often a token was seen in training", ("times", "tokens", "nats", ""), rows)
    rows = [
        (
            f"{row['loss']:.2f}",
            visible(row["text"]),
            Text.assemble(visible(row["before"])[-28:], (visible(row["text"]), "bold red"), visible(row["after"])[:18]),
        )
        for row in survey["surprising"][:_ROWS]
    ]
    yield _part("Most surprising", ("nats", "token", "in context"), rows)
    rows = [
        (visible(row["text"]), "   ".join(f"{visible(near['text'])} {near['cosine']:.2f}" for near in row["near"][:6]))
        for row in survey["neighbours"][: 2 * _ROWS]
    ]
    yield _part("Nearest in the embedding, of the most frequent tokens (cosine)", ("token", "neighbours"), rows)
    rows = [
        (
            str(span["length"]),
            f"{span['times']:,}",
            f"{span['place']:,}",
            visible(span["text"])[:56],
        )
        for span in survey["spans"][:_ROWS]
    ]
    share = len({at for span in survey["spans"] for at in range(span["start"], span["start"] + span["length"])})
    yield _part(
        f"Copied from the training text: {counted(share, 'token')} of the text below",
        ("tokens", "times", "first at", "text"), rows,
    )  # fmt: skip
    yield Text(survey["text"], "dim")


def show_timeline(timeline: dict[str, Any], tokenizer: Tokenizer) -> Iterator[RenderableType]:
    """Yield the parts of an object of `over_time.timeline`: loss, next token, the best head of each kind, samples."""
    rows = []
    for step in timeline["steps"]:
        id_, prob = step["top"][0]
        best = [_best(step["heads"][kind]) for kind in KINDS]
        loss = "" if step["loss"] is None else f"{step['loss']:.3f}"
        rows.append((f"{step['step']:,}", loss, f"{visible(token_text(tokenizer, id_))} {prob:.2f}", *best))
    heads = ("step", "loss", "predicts", *(kind.removesuffix("_token") for kind in KINDS))
    yield _part("The prompt and the best head of each kind (layer.head score), by checkpoint", heads, rows)
    rows = [(f"{row['step']:,}", Text(visible(row["text"])[:84])) for row in timeline["samples"]]
    yield _part("What it generated during training", ("step", "sample"), rows)


def _best(scores: list[list[float]]) -> Text:
    score, layer, head = max((score, layer, head) for layer, row in enumerate(scores) for head, score in enumerate(row))
    return Text(f"{layer}.{head} {score:.2f}", "bold" if score >= NAMED_FROM else "dim")


def _part(title: str, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    cells = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    for column, name in enumerate(names):
        width = max([len(name), *(row[column].cell_len for row in cells)])
        table.add_column(name, no_wrap=True, overflow="crop", min_width=width if column < len(names) - 1 else None)
    for row in cells:
        table.add_row(*row)
    return Group(Text(title, "bold"), Padding(table if rows else Text("none", "dim"), (0, 0, 1, 2)))


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _bar(value: float, most: float) -> Text:
    return Text("█" * max(1, round(30 * value / most) if most else 0), "blue")  # a loss may be exactly 0
