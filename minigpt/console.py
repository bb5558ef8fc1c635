"""Print for a person: results to stdout, messages and progress bars to stderr.

Texts come from models, files and names, and must not control the terminal. So control characters, and those that change
the direction of a line, are shown as \\x1b or \\u202e. Messages and tables are always escaped, results only on a
terminal. A result that goes to a pipe or a file stays the same, byte for byte, since a program reads it.
"""

import codecs
import errno
import gc
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
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
    """Make the characters that control a terminal visible: ESC becomes \\x1b. Line ends and tabs stay."""
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def whole_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    """Yield the same text in pieces that do not cut a \\r\\n in two, so that `harmless` sees a line end."""
    held = ""
    for piece in pieces:
        text = held + piece
        held = "\r" if text.endswith("\r") else ""
        yield text.removesuffix("\r")
    yield held


class SafeConsole(Console):
    """A rich console that makes all texts harmless. Its own codes for colours and the cursor stay."""

    def render(self, renderable: Any, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments of anything that is printed, escaped."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(harmless(segment.text), segment.style)

    def render_str(self, text: str, **more: Any) -> Text:
        """Convert a text that is printed. It is escaped here too, so that its width is right."""
        return super().render_str(harmless(text), **more)

    def print(self, *objects: Any, **more: Any) -> None:
        """Print. The lines of a table do not end in spaces."""
        super().print(*(_Trimmed(each) if isinstance(each, Table) else each for each in objects), **more)

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, with which `minigpt ... | head` ends well; rich would end it with exit code 1.

        A command whose messages cannot be read, such as a training, still ends in that way.
        """
        if self.stderr:
            super().on_broken_pipe()
        raise BrokenPipeError


class _Trimmed:
    """A table without the spaces that fill its lines."""

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
    """A console that breaks lines between words on a terminal, and not elsewhere, so that a log has whole lines.

    Texts have no markup unless `markup=True`: a message may hold a path such as a[b], or 'minigpt[plot]'.
    """

    def __init__(self, **more: Any):
        super().__init__(**{"soft_wrap": True, "emoji": False, "markup": False, **more})

    def print(self, *objects: Any, **more: Any) -> None:
        """Print texts, or other objects that rich can print."""
        if self.is_terminal and objects and all(isinstance(each, str) for each in objects):
            how = {name: more[name] for name in ("markup", "highlight") if name in more}
            text = self.render_str(" ".join(objects), **how)
            if all(cell_len(word) <= self.width for word in text.plain.split()):  # a longer path is not broken
                lines = text.wrap(self, self.width, tab_size=8)
                for line in lines:
                    line.rstrip()
                text = Text("\n").join(lines)
            objects = (text,)
        super().print(*objects, **more)


def messages(quiet: bool = False) -> Console:
    """Make the console for messages."""
    return Lines(stderr=True, quiet=quiet)


class LiveLine:
    """One line at the bottom of a terminal that is updated again and again. Shows nothing if output is piped."""

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
        """Replace the text of the line."""
        if self.live:
            line = Text(harmless(text)) if isinstance(text, str) else text
            line.no_wrap, line.overflow = True, "ellipsis"
            self.live.update(line, refresh=True)

    def close(self) -> None:
        """Remove the line."""
        if self.live:
            self.live.stop()

    def __exit__(self, *error: object) -> None:
        self.close()


def fitted(parts: Sequence[tuple[int, str]], width: int | None) -> str:
    """Join parts (number, text) with two spaces, and leave out those with the highest numbers until the rest fits.

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
    """The text on which a loss was measured. These words are shown next to every loss.

    scored_on("val") -> "whole validation split, no overlap"
    scored_on("val", 20) -> "at most 20 batches of the validation split, no overlap"; a small split has fewer
    scored_on("test", stride=32) -> "whole test split, stride 32"
    """
    name = {"val": "validation", "train": "training"}.get(split, split)
    share = f"whole {name} split" if batches is None else f"at most {counted(batches, 'batch')} of the {name} split"
    return f"{share}, {'no overlap' if stride is None else f'stride {stride:,}'}"


def headline(bits_per_byte: float, step: int, scored: str) -> str:
    """The main figure of a run: headline(1.159, 750, scored_on("val"))."""
    return f"{bits_per_byte:.3f} bits per byte ({scored}; step {step:,})"


def open_streams() -> None:
    """Make it possible to read and print any text: in UTF-8 unless the person asked for another encoding.

    A stream that was closed (`minigpt ... >&-`) becomes the null device, so that no other file takes its number. A
    character that the encoding does not have is written as \\u4f60, which is valid in JSON. Terminals keep their
    encoding. In a pipe or a file, line ends stay \\n, of which Windows would make \\r\\n.
    """
    codecs.register_error("minigpt", _as_json)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115  open until the end
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            own = stream.isatty() or "PYTHONIOENCODING" in os.environ or stream.encoding == "utf-8"
            stream.reconfigure(encoding=None if own else "utf-8")
            if stream is not sys.stdin:
                stream.reconfigure(errors="minigpt", newline=None if stream.isatty() else "\n")


def _as_json(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    units = error.object[error.start : error.end].encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[place : place + 4]}" for place in range(0, len(units), 4)), error.end


def printer(console: Console, style: str | None = None) -> Callable[[str], object]:
    """Make a function that prints a message without markup, on one line if it fits."""
    return lambda text: console.print(text, style=style, markup=False, highlight=False)


console = messages()
tell = printer(console)


def loading(quiet: bool = False) -> None:
    """Load torch if it is not loaded yet, and say so, since it takes a few seconds. A terminal shows a spinner.

    Args:
        quiet: only say it on a terminal, for a command whose output is read by programs.
    """
    if "torch" in sys.modules:
        return
    if not console.is_terminal and not quiet:
        tell("loading PyTorch")
    with console.status("loading PyTorch") if console.is_terminal else nullcontext():
        gc.disable()  # importing makes a million objects; collecting garbage would take a tenth of the time
        try:
            importlib.import_module("torch")
        finally:
            gc.freeze()
            gc.enable()


def write(text: str) -> None:
    """Print a part of a result unchanged; on a terminal, made harmless."""
    sys.stdout.write(harmless(text) if sys.stdout.isatty() else text)


def out(text: str) -> None:
    """Print a result."""
    write(text if text.endswith("\n") else text + "\n")


def out_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    out(json.dumps(value, ensure_ascii=False, indent=2))


@contextmanager
def progress_bars(console: Console) -> Iterator[Report]:
    """Yield report(label, done, total), which shows one bar per label on a terminal. At the end the bars disappear."""
    what, speed = TextColumn("{task.description}", markup=False), TaskProgressColumn(show_speed=True)
    columns = what, BarColumn(), speed, TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        tasks: dict[str, TaskID] = {}

        def report(label: str, done: int, total: int | None) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label)
            bars.update(tasks[label], completed=done, total=total)

        yield report


def ending_signals() -> list[int]:
    """The signals that mean: save and end. Ctrl-C, SIGTERM, and SIGHUP (a closed terminal) except under nohup.

    On Windows, Ctrl-Break instead of SIGHUP.
    """
    found = [signal.SIGINT, signal.SIGTERM]
    if sys.platform == "win32":
        found.append(signal.SIGBREAK)
    elif signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return [int(number) for number in found]


def own_group() -> int:
    """Popen's `creationflags` for a process that Ctrl-C in this terminal does not reach; see `passed_on`.

    They are for Windows, which ignores `start_new_session`.
    """
    if sys.platform == "win32":
        return subprocess.CREATE_NEW_PROCESS_GROUP
    return 0


def passed_on(number: int) -> int:
    """The signal that asks such a process to save and end. On Windows, where it has no choice, that is Ctrl-Break."""
    if sys.platform == "win32":
        return signal.CTRL_BREAK_EVENT
    return number


def leave_terminal() -> bool:
    """If the terminal was closed, discard output, so that writing does not fail. Returns whether it was closed."""
    closed = [number for number in (1, 2) if _is_closed_terminal(number)]
    for number in closed:
        os.dup2(os.open(os.devnull, os.O_WRONLY), number)
    return bool(closed)


def _is_closed_terminal(number: int) -> bool:
    try:
        os.ttyname(number)
    except AttributeError:  # Windows, where no signal reports this
        return False
    except OSError as error:  # ENOTTY: a file or a pipe
        return error.errno == errno.EIO
    return False
