"""Test trainings that start at the same moment on one empty cache: all succeed, and no temporary files remain."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = 2
TOGETHER = 4
FLAGS = (
    "stories --data.stories-count 40 --model.embed-dim 16 --model.num-heads 2 --model.num-layers 1 "
    "--model.max-seq-len 16 --model.attention sdpa --train.batch-size 4 --train.max-steps 6 --train.eval-every 3 "
    "--train.sample-every 0 --train.device cpu --train.precision fp32 --logging.plots false"
).split()


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    """A training with its own name, on the shared cache."""
    argv = [sys.executable, "-m", "minigpt", "train", *FLAGS, "--name", name]
    environment = {**os.environ, "MINIGPT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        argv, cwd=folder, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("turn", range(ROUNDS))
def test_trainings_at_once_on_an_empty_cache_all_end_right(tmp_path: Path, turn: int) -> None:
    names = [f"run-{number}" for number in range(TOGETHER)]
    processes = [start(tmp_path, name) for name in names]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * TOGETHER, "\n".join(said)
    assert not any("warning" in text.lower() or "not stored" in text for text in said), "\n".join(said)
    weights = {
        (tmp_path / "runs" / name / "checkpoints/step-00000006/model.safetensors").read_bytes() for name in names
    }
    assert len(weights) == 1, "all runs have the same bits"
    (prepared,) = (tmp_path / "cache/prepared").iterdir()
    assert not [path for path in tmp_path.rglob(".*") if path.name != ".lock"], "nothing half-written"
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["prepared", "tuning.json"]
    assert sorted(path.name for path in prepared.iterdir()) == [
        "meta.json",
        "tokenizer.json",
        "train.tokens",
        "val.tokens",
    ]
