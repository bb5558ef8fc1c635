"""Print for a person: results to stdout; messages, and progress bars for work that is counted, to stderr.

Texts come from models, files and names, so none may steer the terminal: control characters, and those that turn the
direction of a line, are shown as \\x1b or \\u202e. Messages and tables are always escaped, results where they meet a
terminal. A result that goes into a pipe or a file stays as it is, byte for byte, since a program reads it.
"""

import codecs
import errno
import importlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

_STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
Report = Callable[[str, int, "int | None"], None]


def harmless(text: str) -> str:
    """The text with what steers a terminal made visible: ESC as \\x1b. Line ends and tabs stay."""
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


class SafeConsole(Console):
    """Rich's console, whose texts are all harmless; colours and cursor are its own."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of anything that is printed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)

    def render_str(self, text: str, **more: Any) -> Text:
        """A text that is printed; escaped here too, so that its width is right."""
        return super().render_str(harmless(text), **more)

    def print(self, *objects: Any, **more: Any) -> None:
        """Print; the lines of a table do not end in blanks."""
        super().print(*(_Trimmed(each) if isinstance(each, Table) else each for each in objects), **more)


class _Trimmed:
    """A table without the blanks that fill its lines."""

    def __init__(self, table: Table):
        self.table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        for line in console.render_lines(self.table, options, pad=False):
            while line and not line[-1].text.strip():
                line.pop()
            yield from line[:-1]
            yield from (Segment(last.text.rstrip(), last.style) for last in line[-1:])
            yield Segment.line()


class Lines(SafeConsole):
    """On a terminal a line breaks between words; elsewhere it does not break, so that a log has it whole."""

    def __init__(self, **more: Any):
        super().__init__(**{"soft_wrap": True, "emoji": False, **more})

    def print(self, *objects: Any, **more: Any) -> None:
        """Print texts, or anything else as rich does."""
        if self.is_terminal and objects and all(isinstance(each, str) for each in objects):
            how = {name: more[name] for name in ("markup", "highlight") if name in more}
            text = self.render_str(" ".join(objects), **how)
            if all(cell_len(word) <= self.width for word in text.plain.split()):  # a longer path can be copied whole
                lines = text.wrap(self, self.width, tab_size=8)
                for line in lines:
                    line.rstrip()
                text = Text("\n").join(lines)
            objects = (text,)
        super().print(*objects, **more)


def messages(quiet: bool = False) -> Console:
    """The console for messages."""
    return Lines(stderr=True, quiet=quiet)


class LiveLine:
    """One line at the bottom of a terminal that is replaced again and again; nothing when output is piped."""

    def __init__(self, console: Console):
        self.console = console
        self.live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __bool__(self) -> bool:
        return self.live is not None

    def __enter__(self) -> "LiveLine":
        if self.live:
            self.live.start()
        return self

    def show(self, text: str | Text) -> None:
        """Put this in place of what the line shows."""
        if self.live:
            line = Text(harmless(text)) if isinstance(text, str) else text
            line.no_wrap, line.overflow = True, "ellipsis"
            self.live.update(line, refresh=True)

    def close(self) -> None:
        """Take the line away."""
        if self.live:
            self.live.stop()

    def __exit__(self, *error: object) -> None:
        self.close()


def fitted(parts: Sequence[tuple[int, str]], width: int | None) -> str:
    """The parts in their order, two blanks between, without those of the highest numbers that have no room.

    fitted([(0, "step 5"), (2, "9 tok/s"), (1, "loss 2.5")], 17) -> "step 5  loss 2.5"
    """
    kept = list(parts)
    while width is not None and len(kept) > 1 and sum(cell_len(text) + 2 for _, text in kept) - 2 > width:
        kept.remove(max(kept))
    return "  ".join(text for _, text in kept)


def counted(number: int, what: str) -> str:
    """counted(1, "token") -> "1 token"; counted(2000, "token") -> "2,000 tokens"; (2, "batch") -> "2 batches"."""
    return f"{number:,} {what}{'' if number == 1 else 'es' if what.endswith('ch') else 's'}"


def scored_on(split: str, batches: int | None = None, stride: int | None = None) -> str:
    """What a loss was measured on; these words stand next to every loss.

    scored_on("val") -> "whole validation split, no overlap"
    scored_on("val", 20) -> "20 batches of the validation split, no overlap"
    scored_on("test", stride=32) -> "whole test split, stride 32"
    """
    name = {"val": "validation", "train": "training"}.get(split, split)
    share = f"whole {name} split" if batches is None else f"{counted(batches, 'batch')} of the {name} split"
    return f"{share}, {'no overlap' if stride is None else f'stride {stride:,}'}"


def headline(bits_per_byte: float, step: int, scored: str) -> str:
    """The one figure of a run: headline(1.159, 750, scored_on("val"))."""
    return f"{bits_per_byte:.3f} bits per byte ({scored}; step {step:,})"


def open_streams() -> None:
    """Let any text be written: output is UTF-8 unless the person asked for another encoding.

    A character that the encoding lacks becomes \\u4f60. JSON may hold such an escape. Terminals keep their encoding.
    """
    codecs.register_error("minigpt", _as_json)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            own = stream.isatty() or "PYTHONIOENCODING" in os.environ
            stream.reconfigure(encoding=None if own else "utf-8", errors="minigpt")


def _as_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end


def teller(console: Console, style: str | None = None) -> Callable[[str], object]:
    """Prints a message as it is, on one line where there is room."""
    return lambda text: console.print(text, style=style, markup=False, highlight=False)


console = messages()
tell = teller(console)


def loading() -> None:
    """Load torch, unless it is there, and say so at once: it takes some seconds, in which a terminal shows life."""
    if "torch" in sys.modules:
        return
    if not console.is_terminal:
        tell("loading PyTorch")
        return
    with console.status("loading PyTorch"):
        importlib.import_module("torch")


def write(text: str) -> None:
    """Print a part of a result as it is; on a terminal, harmless."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)


def out(text: str) -> None:
    """Print a result."""
    write(text if text.endswith("\n") else text + "\n")


def out_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    out(json.dumps(value, ensure_ascii=False, indent=2))


@contextmanager
def progress_bars(console: Console) -> Iterator[Report]:
    """Yield report(label, done, total): a bar for each label on a terminal, nothing elsewhere; gone when it ends."""
    columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(show_speed=True), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label)
            bars.update(tasks[label], completed=done, total=total)

        yield report


def ending_signals() -> list[int]:
    """The signals that ask to save and end: Ctrl-C, SIGTERM, and SIGHUP (a closed terminal) but under nohup."""
    found = [signal.SIGINT, signal.SIGTERM]
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return [int(number) for number in found]


def leave_terminal() -> bool:
    """Let output go nowhere where its terminal was closed, so that writing to it does not fail; whether one was."""
    closed = [number for number in (1, 2) if _is_closed_terminal(number)]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


def _is_closed_terminal(number: int) -> bool:
    try:
        os.ttyname(number)
    except AttributeError:  # Windows, where no signal tells of it
        return False
    except OSError as error:  # ENOTTY: a file or a pipe
        return error.errno == errno.EIO
    return False
