"""Print the scores of records for `eval`: the figures, and a table of prompts with expected and written answers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from rich.cells import cell_len, set_cell_size

from minigpt.console import SafeConsole, console, counted, harmless, out, out_json, progress_bars

SHOWN = 10
"""Rows of the table."""


def report_records(run: Any, name: str, source: str | None, split: str, ask: int | None, json: bool) -> None:
    """Answer the records of a loaded run, and print how many answers are right. The other arguments are words and flags
    of `eval`.
    """
    from minigpt.evals.records import ASK, evaluate_records

    with progress_bars(console) as bar:
        bar("answering", 0, None)
        ask = ASK if ask is None else ask
        report = evaluate_records(run, source=source, split=split, ask=ask, progress=partial(bar, "answering"))
    if json:
        out_json(report)
    else:
        show(report, name)


def show(report: Mapping[str, Any], name: str, width: int | None = None) -> None:
    """The figures, then at most SHOWN answers, wrong ones first; the table is not wider than the screen."""
    answers, right = report["answers"], sum(answer["exact"] for answer in report["answers"])
    side = "held out" if report["split"] == "val" else "of the training part"
    out(f"{name} (step {report['step']:,}): {counted(report['records'], 'record')} {side}, {report['data']}")
    out("")
    out(f"loss, nats per token of the answers   {report['loss']:.4f}")
    if not answers:
        return
    out(f"exact match                           {right / len(answers):.1%} ({right:,} of {len(answers):,})")
    out("")
    first = sorted(answers, key=lambda answer: answer["exact"])[:SHOWN]
    rows = [("", "prompt", "expected", "got")]
    rows += [("✓" if row["exact"] else "✗", row["prompt"], row["expected"], row["got"]) for row in first]
    rest = (width or SafeConsole().width) - 1 - 3 * 2
    most = (1, rest - 2 * (rest // 4), rest // 4, rest // 4)
    cells = [
        [_short(text, size, at == 1) for at, (text, size) in enumerate(zip(row, most, strict=True))] for row in rows
    ]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        out("  ".join(set_cell_size(text, size) for text, size in zip(row, widths, strict=True)).rstrip())
    if len(answers) > SHOWN:
        out("")
        out(f"{SHOWN} of {len(answers):,} answers, wrong ones first; --json has all")


def _short(text: str, most: int, end: bool) -> str:
    """One line of at most `most` columns: the beginning of a long text, or its end, where a question usually is."""
    line = harmless(" ".join(text.split()))
    if cell_len(line) <= most:
        return line
    kept = set_cell_size(line[::-1] if end else line, most - 1).rstrip()
    return "…" + kept[::-1] if end else kept + "…"
