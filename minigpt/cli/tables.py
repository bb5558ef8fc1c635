"""Print plain tables: at most as wide as the terminal, whole in a pipe; no line ends in blanks."""

import shutil
import sys
import textwrap
from collections.abc import Sequence

from rich.cells import cell_len, chop_cells

from minigpt.console import harmless, out

GAP = 2
LEAST = 12
"""Smallest width of a column of words."""


def show_table(head: Sequence[str], rows: Sequence[Sequence[str]], text: int, spare: Sequence[str] = ()) -> None:
    """Print a table, one line per row.

    Args:
        head: names of the columns.
        rows: their cells.
        text: how many of the first columns are words; the others are figures.
        spare: names of columns to leave out if the terminal is narrow, the first one first.
    """
    out("\n".join(table(head, rows, text, _width(), spare)))


def show_columns(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose first column has names and whose other columns are compared, in blocks of as many columns as
    fit.
    """
    out("\n".join(columns(head, rows, _width())))


def show_line(text: str, indent: int = 0) -> None:
    """Print a line; a terminal breaks it between words, and indents the next lines by `indent` blanks."""
    width = _width() or max(1, len(text))
    lines = textwrap.wrap(
        text, width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip
    out("\n".join(lines))


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], text: int, width: int | None, spare: Sequence[str] = ()
) -> list[str]:
    """The lines of `show_table`. If there is still no room for words, their middle is left out."""
    cells = [[harmless(cell).replace("\n", "\\n") for cell in row] for row in (head, *rows)]
    kept = list(range(len(head)))
    widths = [max(cell_len(row[place]) for row in cells) for place in kept]

    def excess() -> int:
        return 0 if width is None else sum(widths[place] + GAP for place in kept) - GAP - width

    for name in spare:
        if excess() > 0:
            kept.remove(head.index(name))
    words = [place for place in kept if place < text]
    while excess() > 0 and widths[wide := max(words, key=lambda place: widths[place])] > LEAST:
        widths[wide] -= 1
    lines = []
    for row in cells:
        line = ""
        for place in kept:
            cell = shortened(row[place], widths[place])
            blanks = " " * (widths[place] - cell_len(cell))
            line += (cell + blanks if place < text else blanks + cell) + " " * GAP
        lines.append(line.rstrip())
    return lines


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], width: int | None) -> list[str]:
    """The lines of `show_columns`, with an empty line between two blocks."""
    widths = [GAP + max(cell_len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    room = sum(widths) if width is None else width + GAP
    lines: list[str] = []
    first = 1
    while first < len(head):
        last = first + 1
        while last < len(head) and widths[0] + sum(widths[first : last + 1]) <= room:
            last += 1
        block = [(row[0], *row[first:last]) for row in (head, *rows)]
        lines += [*([""] if lines else []), *table(block[0], block[1:], len(block[0]), width)]
        first = last
    return lines


def shortened(text: str, width: int) -> str:
    """shortened("learning_rate=0.001,seed=1", 12) -> "learni…eed=1"; a text that fits stays."""
    if cell_len(text) <= width:
        return text
    left = chop_cells(text, width // 2)[0]
    right = chop_cells(text[::-1], width - 1 - cell_len(left))[0][::-1]
    return f"{left}…{right}"


def _width() -> int | None:
    """Columns of the terminal; None if no terminal limits a line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
