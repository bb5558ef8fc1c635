"""Test the first five minutes in a terminal of 80 columns: `pytest -s -m slow` on this file prints the transcript."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from cli_run import text
from terminal_run import COLUMNS, in_terminal
from tuned_run import questions

SETTINGS = "--train.device cpu --train.precision fp32 --model.attention sdpa --train.compile off".split()
TINY = ["train", "cats.txt", "--tiny-run", *SETTINGS]
TRAIN = [*TINY, "--train.max-steps", "150"]
SWEEP = ["sweep", "cats.txt", "--tiny-run", "--train.max-steps", "5", "--optimizer.learning-rate", "1e-3,1e-2"]
RUN, TUNED = "runs/cats-tiny", "runs/answers"


def typed(
    words: list[str], folder: Path, code: int = 0, keys: Sequence[tuple[str, bytes]] = (), model: bool = False
) -> str:
    """The screen after a command; checks the rules for all screens. `model`: a model wrote some of the lines."""
    found, screen = in_terminal(words, folder, keys)
    shown = "\n".join(screen.lines)
    print(f"\n$ minigpt {' '.join(words)}\n{shown}")
    assert found == code, shown
    assert not screen.overflown, "a line is wider than the terminal"
    assert all(len(line) <= COLUMNS for line in screen.lines)
    assert model or not [line for line in screen.lines if line != line.rstrip()]
    assert "Traceback" not in shown and "bug in minigpt" not in shown
    return shown


def piped(words: list[str], folder: Path) -> str:
    done = subprocess.run([sys.executable, "-m", "minigpt", *words], cwd=folder, capture_output=True, check=False)
    return done.stdout.decode() + done.stderr.decode()


@pytest.mark.slow  # fifteen processes
def test_a_first_session_fits_80_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path / "config"))
    (tmp_path / "cats.txt").write_text(text())
    questions(tmp_path / "questions.jsonl")

    assert "minigpt train my.txt" in typed(["train"], tmp_path, code=2)
    typed(["train", "-h"], tmp_path)
    typed(["trian"], tmp_path, code=2)
    stopped = typed(TRAIN, tmp_path, code=130, keys=[("loss ", b"\x03")])
    assert "of 150" in stopped and stopped.endswith("saved; the same command continues")
    ended = typed(TRAIN, tmp_path)
    assert "continues from step" in ended and "finished: 150 steps" in ended and "minigpt chat runs/cats-tiny" in ended
    clocked = typed([*TINY, "--train.max-steps", "9999", "--name", "clock", "--train.max-minutes", "0.01"], tmp_path)
    assert "finished after 0.6 seconds, the time for training: step" in clocked
    typed(["plot", RUN], tmp_path)
    listed = typed(["runs", "list"], tmp_path).splitlines()
    assert [line.split()[0] for line in listed] == ["name", "clock", "cats-tiny"], "one line per run, the newest first"
    compared = typed(["runs", "compare", RUN, "runs/clock"], tmp_path)
    assert "train.max_minutes" in compared
    swept = typed([*SWEEP, *SETTINGS], tmp_path)
    assert swept.splitlines()[-1].startswith("best: --optimizer.learning-rate=0.01: best val ")
    typed(["finetune", RUN, "questions.jsonl", "--name", "answers", "--train.max-steps", "5", *SETTINGS], tmp_path)
    typed(["eval", RUN], tmp_path)
    typed(["generate", RUN, "--prompt", "the cat", "--max-new-tokens", "40"], tmp_path, model=True)
    spoken = [(">", b"the cat\n"), ("tokens/s", b""), (">", b"\x04")]
    typed(["chat", TUNED, "--max-new-tokens", "30"], tmp_path, keys=spoken, model=True)
    for words in (["train", "-h"], ["runs", "list"], ["runs", "compare", RUN, "runs/clock"]):
        whole = piped(words, tmp_path)
        assert "\x1b" not in whole and all(line == line.rstrip() for line in whole.splitlines())
        shown = set(typed(words, tmp_path).split()) - {"\\"}  # \ is for a command that continues on the next line
        assert shown <= set(whole.split()), "no word is cut"
