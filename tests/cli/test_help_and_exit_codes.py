"""Test in a real process that the help is printed, the exit code is right, and there is no traceback."""

import subprocess
import sys
from pathlib import Path


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
