"""Print for a person: results to stdout; messages, and progress bars for work that is counted, to stderr."""

import errno
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, "int | None"], None]


def messages(quiet: bool = False) -> Console:
    """A console on stderr that breaks no line, so that a log has them whole and a path can be copied."""
    return Console(stderr=True, quiet=quiet, soft_wrap=True)


def teller(console: Console) -> Callable[[str], object]:
    """Prints a message as it is, on one line where there is room."""
    return lambda text: console.print(text, markup=False, highlight=False)


console = messages()


def out(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


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
