"""What a person is told on stderr, and progress bars for work that is counted: fetching, reading, encoding."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeRemainingColumn

Report = Callable[[str, int, "int | None"], None]


def messages(quiet: bool = False) -> Console:
    """A console on stderr that breaks no line, so that a log has them whole and a path can be copied."""
    return Console(stderr=True, quiet=quiet, soft_wrap=True)


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
