"""Run a command in a pseudo-terminal of 80 columns, and return what is on its screen at the end."""

import os
import re
import select
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.cells import cell_len

fcntl = pytest.importorskip("fcntl", reason="needs POSIX")
pty = pytest.importorskip("pty", reason="needs POSIX")
termios = pytest.importorskip("termios", reason="needs POSIX")

TOKEN = re.compile(r"\x1b\[([0-9;?]*)[ -/]*([@-~])|\x1b\][^\x07]*\x07|\x1b[@-_=>]|(.)", re.DOTALL)
COLUMNS, ROWS = 80, 24
SECONDS = 120
"""A command that takes longer is killed."""


class Screen:
    """What a terminal shows of a program's output, all lines from the first. It knows what rich and readline write.

    lines: a line is what the program ended with a line feed.
    overflown: lines that did not fit, so the terminal continued them in the next row.
    """

    def __init__(self, columns: int = COLUMNS) -> None:
        self.columns = columns
        self.rows: list[list[str]] = [[]]
        self.row = self.column = 0
        self.overflown: list[str] = []

    def feed(self, text: str) -> "Screen":
        """Add output of a program."""
        for found in TOKEN.finditer(text):
            if found[3] is not None:
                self._put(found[3])
            elif found[2]:
                self._steer(found[1], found[2])
        return self

    @property
    def lines(self) -> list[str]:
        """The lines up to the last one that is not empty."""
        lines = ["".join(row) for row in self.rows]
        while lines and not lines[-1].strip():
            lines.pop()
        return lines

    def _put(self, char: str) -> None:
        if char == "\n":
            self._down()
        elif char == "\r":
            self.column = 0
        elif char == "\b":
            self.column = max(0, self.column - 1)
        elif char >= " ":
            if self.column + cell_len(char) > self.columns:
                self.overflown.append("".join(self.rows[self.row]))
                self._down()
                self.column = 0
            line = self.rows[self.row]
            line += [" "] * (self.column + 1 - len(line))
            line[self.column] = char
            self.column += 1

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.rows):
            self.rows.append([])

    def _steer(self, numbers: str, what: str) -> None:
        count = int(numbers.split(";")[0]) if numbers.split(";")[0].isdigit() else 0
        line = self.rows[self.row]
        if what == "A":
            self.row = max(0, self.row - max(1, count))
        elif what == "B":
            self.row = min(len(self.rows) - 1, self.row + max(1, count))
        elif what == "C":
            self.column += max(1, count)
        elif what == "D":
            self.column = max(0, self.column - max(1, count))
        elif what == "G":
            self.column = max(0, count - 1)
        elif what == "K":
            line[:] = [] if count == 2 else line[: self.column]
        elif what == "J" and count == 0:
            line[:] = line[: self.column]
            del self.rows[self.row + 1 :]


def in_terminal(words: list[str], folder: Path, keys: Sequence[tuple[str, bytes]] = ()) -> tuple[int, Screen]:
    """(exit code, screen) of `minigpt WORDS`, run in the folder; each of the keys is typed after its text has
    appeared.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-m", "minigpt", *words],
        cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env=env | {"TERM": "xterm-256color", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )  # fmt: skip
    os.close(theirs)
    raw, typed, waiting, end = b"", 0, list(keys), time.monotonic() + SECONDS
    while time.monotonic() < end:
        if select.select([ours], [], [], 0.1)[0]:
            try:
                part = os.read(ours, 65536)
            except OSError:  # the other side is closed
                part = b""
            if not part:
                break
            raw += part
        if waiting and waiting[0][0] in raw[typed:].decode(errors="replace"):
            typed = len(raw)
            os.write(ours, waiting.pop(0)[1])
    else:
        process.kill()
    code = process.wait()
    os.close(ours)
    return code, Screen().feed(raw.decode(errors="replace"))
