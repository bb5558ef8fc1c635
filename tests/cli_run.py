"""Give tests of the command a small text, a small run, what it prints with --json, and how a wrong command must end."""

import json
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli import main

WORDS = "the cat sat on a mat and saw the dog who ran to the red barn by the old mill".split()
SMALL = (
    "--model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 --model.max-seq-len 32 --train.batch-size 8 "
    "--train.device cpu --train.precision fp32 --logging.plots false --schedule.warmup-steps 5"
).split()


def text(lines: int = 400) -> str:
    """Sentences that repeat with variations: a small model learns them at once."""
    return "".join(
        " ".join(WORDS[(3 * i + j * (1 + i % 4)) % len(WORDS)] for j in range(9)) + ".\n" for i in range(lines)
    )


def small_run(folder: Path) -> Path:
    """A run of 40 steps on `text`, 2 seconds of training."""
    (folder / "cats.txt").write_text(text())
    code = main(
        ["train", str(folder / "cats.txt"), *SMALL, "--logging.runs-dir", str(folder), "--name", "cats"]
        + ["--train.max-steps", "40", "--train.eval-every", "20", "--train.save-every", "20", "--logging.csv", "true"]
        + ["--optimizer.learning-rate", "2e-2", "--train.sample-every", "20"]
    )
    assert code == 0
    return folder / "cats"


def json_of(capsys: pytest.CaptureFixture[str], *argv: object) -> dict[str, Any]:
    """The object that a command prints with --json."""
    capsys.readouterr()
    assert main([*map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def fails(capsys: pytest.CaptureFixture[str], argv: list[str], *parts: str) -> str:
    """Check that the command exits with 2, prints one line to stderr that has all the parts, and no result."""
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith("minigpt: ")]
    assert len(lines) == 1, captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""
    for part in parts:
        assert part in lines[0], lines[0]
    return lines[0]
