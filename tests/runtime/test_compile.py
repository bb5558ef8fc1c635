"""Test torch.compile: a compiled run learns like an uncompiled one; a machine without a compiler runs uncompiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FLAGS = (
    "train stories --data.stories-count 60 --model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 "
    "--model.max-seq-len 32 --train.batch-size 8 --train.max-steps 12 --train.eval-every 6 --train.sample-every 6 "
    "--model.attention sdpa --train.device cpu --train.precision fp32 --logging.plots false --logging.log-every 1"
).split()


def losses(folder: Path, compile: str, **environment: str) -> tuple[list[float], str]:
    argv = [
        sys.executable,
        "-m",
        "minigpt",
        *FLAGS,
        "--train.compile",
        compile,
        "--name",
        f"{compile}{len(environment)}",
    ]
    done = subprocess.run(
        argv, cwd=folder, capture_output=True, text=True, check=True, env={**os.environ, **environment}
    )
    lines = (folder / "runs" / argv[-1] / "metrics.jsonl").read_text().splitlines()
    return [value for line in map(json.loads, lines) for key, value in line.items() if "loss" in key], done.stderr


@pytest.mark.slow
def test_a_compiled_run_gives_the_losses_of_the_eager_one(tmp_path: Path) -> None:
    eager, _ = losses(tmp_path, "off")
    compiled, messages = losses(tmp_path, "on")
    assert "running eager" not in messages
    assert "compiled" in messages
    assert compiled == pytest.approx(eager, abs=1e-3)


@pytest.mark.slow
def test_without_a_compiler_the_run_says_so_once_and_goes_on(tmp_path: Path) -> None:
    eager, _ = losses(tmp_path, "off")
    fallen, messages = losses(
        tmp_path, "on", PATH="/nowhere", CXX="/nowhere/g++", TORCHINDUCTOR_CACHE_DIR=str(tmp_path)
    )
    assert messages.count("torch.compile does not work here, running eager") == 1
    assert fallen == eager
