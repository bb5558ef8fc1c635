"""Test that the scripts in examples/ run unchanged, and print what they promise."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


def said_by(name: str, place: Path, *argv: str) -> str:
    """The output of a script, run in its own folder."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *argv],
        cwd=place,
        env=os.environ | {"MINIGPT_CACHE": str(place / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_each_is_short_and_opens_with_its_command():
    scripts = sorted(EXAMPLES.glob("*.py"))
    assert len(scripts) == 3
    for script in scripts:
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 60
        assert f"python examples/{script.name}" in text


@pytest.mark.slow
def test_train_and_sample(tmp_path: Path):
    said = said_by("train_and_sample.py", tmp_path, "20")
    loss = re.search(r"20 steps in \d+ s, validation loss (\d\.\d+)", said)
    assert loss and float(loss[1]) < 3.9, "below ln 50, the loss of a model that knows nothing"
    assert said.count("Once upon a time") == 2


@pytest.mark.slow
def test_own_data_and_hook(tmp_path: Path):
    said = said_by("own_data_and_hook.py", tmp_path)
    assert "it counts" in said.splitlines()[-1], "the hook stopped the run when 99 % of new rows were right"


@pytest.mark.slow
def test_compare_runs(tmp_path: Path):
    said = said_by("compare_runs.py", tmp_path, "10")
    means = dict(re.findall(r"^(muon|adamw) +(\d\.\d+)", said, re.M))
    assert set(means) == {"muon", "adamw"}
    assert (tmp_path / "compare.png").read_bytes().startswith(b"\x89PNG")
