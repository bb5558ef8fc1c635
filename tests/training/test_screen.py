"""Test what a run prints: one live line that fits the terminal, plain lines in a pipe, and how it ended."""

import io
from types import SimpleNamespace
from typing import Any

import pytest
from terminal_run import Screen as Shown

from minigpt.console import Lines, fitted
from minigpt.training.hooks.screen import Screen, describe, ending, spoken

LINE = {
    "step": 1250, "loss": 2.01, "lr": 9.8e-4, "tokens_per_second": 31204.0, "mfu": 0.12, "val_loss": 2.104,
    "bits_per_byte": 3.0355,
}  # fmt: skip


def trainer(**state: Any) -> Any:
    told = {"step": 1250, "val_loss": 2.104, "seconds": 61.0, "stop_reason": "budget used up"} | state
    return SimpleNamespace(
        state=SimpleNamespace(**told), progress=0.6, budget=SimpleNamespace(total_steps=2000),
        config=SimpleNamespace(max_minutes=None),
    )  # fmt: skip


def live(width: int) -> str:
    """The last line that a terminal of this width shows while a run trains."""
    file = io.StringIO()
    screen = Screen(Lines(file=file, force_terminal=True, width=width))
    screen.on_start(trainer())
    screen.began = (0.0, 0.1)
    screen.show(trainer(), LINE | {"step": 1240})
    shown = Shown(width).feed(file.getvalue().replace("\n", "\r\n"))
    assert not shown.overflown
    screen.close()
    return shown.lines[-1]


def test_the_live_line_fits_and_drops_the_least_important_first() -> None:
    parts = ("step 1,250/2,000", "loss 2.0100", "val 2.1040", "31,204 tok/s")
    for width, count in ((80, 4), (70, 4), (60, 3), (32, 2), (24, 1)):
        line = live(width)
        assert len(line) < width and [part in line for part in parts] == [True] * count + [False] * (4 - count), line
        assert ("eta " in line) == (count > 2)
    assert live(110).startswith("━" * 14 + "─" * 10 + "  step")


def test_a_run_of_a_million_years_has_an_eta() -> None:
    screen, run = Screen(Lines()), trainer(step=2)
    screen.began, run.progress = (0.0, 0.0), 1e-18
    assert "eta 11574 days" in describe(LINE, run, screen._eta(run))


def test_a_long_evaluation_is_seen_to_move() -> None:
    file = io.StringIO()
    screen = Screen(Lines(file=file, force_terminal=True, width=80))
    screen.on_start(trainer(step=0))
    screen.on_validation_batch(trainer(step=0), 1)
    screen.drawn = 0.0
    screen.on_validation_batch(trainer(step=0), 34)
    shown = Shown(80).feed(file.getvalue().replace("\n", "\r\n"))
    screen.close()
    assert shown.lines[-1] == "step 0/2,000  validation batch 34"


def test_a_printed_line_is_whole_in_a_pipe_and_fits_a_terminal() -> None:
    whole = describe(LINE, trainer(), 42.0)
    assert whole == (
        "step 1,250/2,000  loss 2.0100  val 2.1040 (3.035 bits/byte)  lr 9.8e-04  31,204 tok/s  mfu 12%  eta 0:00:42"
    )
    assert describe(LINE, trainer(), 42.0, 80) == (
        "step 1,250/2,000  loss 2.0100  val 2.1040 (3.035 bits/byte)  31,204 tok/s"
    )
    assert fitted([(0, "a"), (2, "b"), (1, "c")], 4) == "a  c"
    assert fitted([(0, "abcdef"), (1, "c")], 4) == "abcdef"


def test_a_pipe_gets_no_bar_and_no_escape_codes() -> None:
    file = io.StringIO()
    screen = Screen(Lines(file=file, force_terminal=False, width=80))
    screen.on_start(trainer())
    screen.on_step(trainer())
    screen.show(trainer(), LINE)
    screen.on_end(trainer())
    assert "\x1b" not in file.getvalue() and "━" not in file.getvalue() and file.getvalue().count("\n") == 2


@pytest.mark.parametrize(
    ("minutes", "state", "said"),
    [
        (None, {"step": 2000}, "finished: 2,000 steps in 0:01:01"),
        (5.0, {"seconds": 300.2, "step": 812}, "finished after 5 minutes, the time for training: step 812 of 2,000"),
        (5.0, {"seconds": 200.0, "step": 2000}, "finished: 2,000 steps in 0:03:20"),
        (1.0, {"stop_reason": "interrupted by SIGINT"}, "stopped, interrupted by SIGINT: step 1,250 of 2,000"),
    ],
)
def test_the_end_says_what_ended_the_run(minutes: float | None, state: dict[str, Any], said: str) -> None:
    run = trainer(**state)
    run.config.max_minutes = minutes
    assert ending(run) == said
    assert [spoken(each) for each in (1, 30, 60, 150, 43200)] == [
        "1 second", "30 seconds", "1 minute", "2.5 minutes", "12 hours",
    ]  # fmt: skip


def test_messages_break_between_words_and_a_long_path_stays_whole() -> None:
    def shown(text: str, terminal: bool = True) -> str:
        file = io.StringIO()
        Lines(file=file, force_terminal=terminal, width=20).print(text, highlight=False)
        return file.getvalue()

    assert shown("one two three four five six :smile:") == "one two three four\nfive six :smile:\n"
    assert shown("reading /a/path/that/is/longer/than/it") == "reading /a/path/that/is/longer/than/it\n"
    assert shown("one two three four five six", terminal=False) == "one two three four five six\n"
