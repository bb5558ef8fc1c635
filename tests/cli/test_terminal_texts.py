"""Test that no text of a model, a file or a name can control the terminal, or end in a traceback."""

import io
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minigpt import cli
from minigpt.console import SafeConsole, counted, harmless, messages, open_streams, out, whole_line_ends
from minigpt.data import Batches
from minigpt.errors import DataError
from minigpt.generation.chat.terminal import PlainLines
from minigpt.tokenizers import ByteTokenizer
from minigpt.training.hooks.screen import Screen

NASTY = "a\x1b[31mb\x1b]0;title\x07c\x9b2Jd\u202ee\r\x00"
SHOWN = "a\\x1b[31mb\\x1b]0;title\\x07c\\x9b2Jd\\u202ee\\r\\x00"


def test_what_steers_a_terminal_is_shown() -> None:
    assert harmless(NASTY) == SHOWN
    assert harmless("tab\t line\r\n é 你好 \u200f") == "tab\t line\n é 你好 \u200f"


def test_a_line_end_of_two_pieces_is_one() -> None:
    pieces = ["one\r", "\ntwo", "\r", "", "\n", "three\r"]
    assert "".join(whole_line_ends(pieces)) == "".join(pieces)
    assert "".join(map(harmless, whole_line_ends(pieces))) == "one\ntwo\nthree\\r"


def test_a_console_escapes_texts_tables_and_cells() -> None:
    from rich.table import Table
    from rich.text import Text

    file = io.StringIO()
    console = SafeConsole(file=file, width=200)
    table = Table(NASTY)
    table.add_row(NASTY)
    console.print(NASTY, Text(NASTY), table, markup=False)
    assert not set(file.getvalue()) & set("\x1b\x07\x9b\u202e\r\x00") and file.getvalue().count("\\x1b]0;title") == 4


def test_results_are_exact_in_a_pipe_and_harmless_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for stream, expected in ((io.StringIO(), NASTY), (Terminal(), SHOWN)):
        monkeypatch.setattr(sys, "stdout", stream)
        out(NASTY)
        assert stream.getvalue() == expected + "\n"


def test_brackets_in_a_message_stay(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ("no plot: pip install 'minigpt[plot]'", "runs/[/red]: 1,024 parameters", "runs/a[bold]b"):
        messages().print(words)
        assert capsys.readouterr().err == f"{words}\n"


def test_brackets_in_the_name_of_a_text_or_a_tokenizer_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a[bold").mkdir()
    ByteTokenizer().save(Path("a[bold/b]"))
    Path("[x].txt").write_text("the cat sat\n" * 20)
    assert cli.main(["tokenizer", "compare", "byte", "a[bold/b]", "--text", "[x].txt"]) == 0
    shown = capsys.readouterr().out
    assert "[x].txt: 240 bytes" in shown and "a[bold/b]" in shown


def test_an_error_is_one_line_whatever_its_names_hold(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["runs", "show", f"no{NASTY.replace(chr(0), '')}\nrun"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and not set(lines[0]) & set("\x1b\x07\x9b\u202e\r")


def test_another_encoding_is_no_traceback() -> None:
    words = [sys.executable, "-m", "minigpt", "runs", "show", "你好😀"]
    for name in ("cp1252", "ascii", "latin-1:strict"):
        done = subprocess.run(words, capture_output=True, env={**os.environ, "PYTHONIOENCODING": name}, check=False)
        assert done.returncode == 2
        assert b"\\u4f60\\u597d\\ud83d\\ude00" in done.stderr and b"Traceback" not in done.stderr


def test_pipes_carry_utf_8_and_plain_line_ends_on_windows_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTHONIOENCODING", raising=False)
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "cp1252", newline="\r\n"))  # as Windows opens a pipe
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é 你好\r\n".encode()), "cp1252"))
    open_streams()
    print(PlainLines().read())
    sys.stdout.flush()
    assert out.getvalue() == "é 你好\n".encode()


def _broken(monkeypatch: pytest.MonkeyPatch, error: Exception) -> int:
    from minigpt.cli import config

    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr(config, "main", fail)
    return cli.main(["config", "show", "--token=abc", "--api-key", "my key", "https://me:secret@host/x"])


def test_a_bug_is_one_line_and_its_details_are_in_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert _broken(monkeypatch, KeyError("what")) == 1
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "this is a bug in minigpt (KeyError" in line
    (file,) = tmp_path.iterdir()
    text = file.read_text()
    assert str(file) in line and "Traceback" in text and "abc" not in text and "secret" not in text
    assert "my key" not in text and "--api-key" in text
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not there"))
    assert _broken(monkeypatch, KeyError("what")) == 1
    assert "Traceback" in (shown := capsys.readouterr().err) and "cannot be written" in shown


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (RecursionError(), 1, "nested too deeply"),
        (MemoryError(), 1, "memory ran out"),
        (OSError(36, "File name too long", "a" * 300), 2, "aaa: File name too long"),
        (PermissionError(13, "Permission denied", "/x"), 2, "/x: Permission denied"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception, code: int, message: str
) -> None:
    assert _broken(monkeypatch, error) == code
    assert message in (line := capsys.readouterr().err) and line.count("\n") == 1


def test_counts_have_the_right_plural() -> None:
    assert [counted(number, "token") for number in (0, 1, 2000)] == ["0 tokens", "1 token", "2,000 tokens"]


def test_a_run_of_one_step_and_a_text_of_one_token_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    state = SimpleNamespace(step=1, seconds=2.0, stop_reason="budget used up")
    known = {"config": SimpleNamespace(max_minutes=None), "budget": SimpleNamespace(total_steps=1)}
    Screen(messages()).on_end(SimpleNamespace(state=state, **known))  # pyright: ignore[reportArgumentType]
    assert capsys.readouterr().err == "finished: 1 step in 0:00:02\n"
    with pytest.raises(DataError, match="the training text has 1 token, but"):
        Batches(np.zeros(1, np.uint16), 1, 8, 0)
