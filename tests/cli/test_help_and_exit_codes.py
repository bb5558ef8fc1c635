"""Test in a real process that the help is printed, the exit code is right, and there is no traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from mostly_slow import mostly_slow


@pytest.mark.skipif(os.name != "posix", reason="needs a shell's pipes")
@pytest.mark.parametrize(
    "words", mostly_slow(["--help", "config recipes", "--version", "runs --help", "prepare --help"], [0, 1])
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_is_no_error(words: str, unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    argv, env = [sys.executable, "-m", "minigpt", *words.split()], {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, env=env, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
@pytest.mark.parametrize(("words", "closed", "code"), [
    ("config recipes", ">&-", 0), ("config recipes", "<&- >&- 2>&-", 0), ("runs show nothing", "2>&-", 2),
    ("data inspect -", "<&-", 2),
])  # fmt: skip
def test_a_closed_stream_is_no_bug(words: str, closed: str, code: int) -> None:
    command = f'exec "{sys.executable}" -m minigpt {words} {closed}'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=False)
    assert done.returncode == code and "this is a bug" not in done.stderr


def test_exit_codes_and_help_from_a_real_process(tmp_path: Path) -> None:
    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "minigpt", *argv], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    assert run("--help").returncode == 0
    assert "minigpt demo" in run().stdout
    wrong = run("train", "nowhere.txt")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "Traceback" not in wrong.stderr
    shown = run("train", "--help").stdout
    for flag in ("--train.max-steps", "--model.embed-dim", "--optimizer.learning-rate", "--data.val-fraction"):
        assert flag in shown
