"""Test that tables fit the terminal, lose nothing in a pipe, and leave no blanks at the ends of lines."""

import io

import pytest
from rich.table import Table

from minigpt.cli import model as command
from minigpt.cli.tables import columns, shortened, table
from minigpt.console import SafeConsole

HEAD = ("name", "state", "data", "best val")
ROWS = [
    ("learning_rate=0.001,seed=1", "finished", "cats.txt", "1.0110"),
    ("learning_rate=0.003,seed=1", "interrupted", "cats.txt", "-"),
]


def test_a_table_is_whole_in_a_pipe_and_one_line_a_row_in_a_terminal() -> None:
    whole = table(HEAD, ROWS, 3, None)
    assert whole[1] == "learning_rate=0.001,seed=1  finished     cats.txt    1.0110"
    assert table(HEAD, ROWS, 3, 80) == whole
    narrow = table(HEAD, ROWS, 3, 50, spare=("data", "state"))
    assert narrow[0].split() == ["name", "state", "best", "val"]
    least = table(HEAD, ROWS, 3, 24, spare=("data", "state"))
    assert [line.split()[0] for line in least[1:]] == ["learnin…seed=1", "learnin…seed=1"]
    for width in (80, 50, 24):
        lines = table(HEAD, ROWS, 3, width, spare=("data", "state"))
        assert len(lines) == 3 and all(len(line) <= width and line == line.rstrip() for line in lines)


def test_columns_that_have_no_room_follow_in_a_block_of_their_own() -> None:
    head = ("", "one", "two", "three")
    rows = [("best val", "1.00", "2.00", "3.00"), ("model.bias", "true", "false", "true")]
    assert columns(head, rows, None) == columns(head, rows, 80)
    assert columns(head, rows, 24) == [
        "            one   two", "best val    1.00  2.00", "model.bias  true  false", "",
        "            three", "best val    3.00", "model.bias  true",
    ]  # fmt: skip


def test_a_long_word_loses_its_middle() -> None:
    assert shortened("learning_rate=0.001,seed=1", 13) == "learni…seed=1"
    assert shortened("short", 5) == "short"
    assert shortened("你好你好你好", 7) == "你…你好"


def test_no_line_of_any_table_ends_in_blanks() -> None:
    file = io.StringIO()
    shown = Table("part", "share", box=None, title="parameters")
    shown.add_row("a long name", "1")
    shown.add_row("x", "22")
    SafeConsole(file=file, width=60).print(shown)
    lines = file.getvalue().splitlines()
    assert len(lines) == 4 and all(line == line.rstrip() for line in lines)


def test_one_sequence_is_not_called_sequences(capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    flops, memory = {"training": 6, "inference": 2}, {"total": 8}
    report = {"parameters": {"total": 1}, "flops_per_token": flops, "training_memory": memory, "shapes": []}
    for size, name in ((1, "training, 1 sequence "), (2, "training, 2 sequences ")):
        command._show(report | {"inference_memory": memory, "batch_size": size})
        assert name in capsys.readouterr().out
