"""Test kill -9 at random moments: the resumed run ends with the bits of a run without interruption."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

FLAGS = (
    "--model.embed-dim 32 --model.num-heads 2 --model.num-layers 2 --model.max-seq-len 32 --model.dropout 0.2 "
    "--model.word-dropout 0.1 --model.output-dropout 0.1 --model.locked-dropout block --train.batch-size 8 "
    "--train.micro-batch-size 4 --train.ema-decay 0.95 --train.max-steps 180 --train.masked-inputs 0.4 "
    "--schedule.weight-decay opposite --model.softmaxes 2 "
    "--train.eval-every 15 --train.save-every 10 --train.sample-every 50 --schedule.kind cosine+plateau "
    "--schedule.plateau-patience 1 --schedule.plateau-max-steps 20 --schedule.warmup-steps 10 "
    "--train.device cpu --train.precision fp32 --logging.plots false --logging.log-every 5"
).split()


def start(folder: Path, name: str) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "minigpt", "train", "stories", "--data.stories-count", "60", "--name", name, *FLAGS]
    return subprocess.Popen(argv, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    step = run / "checkpoints" / (run / "checkpoints/last").read_text().strip()
    assert step.name == "step-00000200"
    parts = ("model", "ema", "optimizer")
    return {f"{part} {k}": v for part in parts for k, v in load_file(step / f"{part}.safetensors").items()}


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_no_bit(tmp_path: Path) -> None:
    whole = start(tmp_path, "whole")
    _, err = whole.communicate(timeout=300)
    assert whole.returncode == 0, err
    expected = final_tensors(tmp_path / "runs/whole")
    undisturbed = json.loads((tmp_path / "runs/whole/metrics.jsonl").read_text().splitlines()[-1])["seconds"]
    chance = random.Random(7)
    kills, rounds = 0, 0
    seen: list[str] = []
    while kills < 20:
        rounds += 1
        name = f"storm-{rounds}"
        while True:
            process = start(tmp_path, name)
            metrics = tmp_path / "runs" / name / "metrics.jsonl"
            before = metrics.stat().st_mtime if metrics.exists() else 0.0
            while process.poll() is None and not (metrics.exists() and metrics.stat().st_mtime > before):
                time.sleep(0.02)  # wait until this process trains, since killing it during imports tests nothing
            # so that a slow machine progresses between two kills too
            time.sleep(chance.uniform(0.0, 0.3 * undisturbed))
            if process.poll() is None and kills < 20:
                process.send_signal(signal.SIGKILL)
                kills += 1
            _, err = process.communicate(timeout=300)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, err
            last = tmp_path / "runs" / name / "checkpoints/last"
            seen.append(last.read_text().strip() if last.exists() else "none")
        found = final_tensors(tmp_path / "runs" / name)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            assert torch.equal(tensor, found[key]), f"{name}: {key} differs"
        steps = [line.split(",")[0] for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == len(set(steps)), "no step is logged twice"
    print(f"{kills} kills over {rounds} runs, last checkpoints at the kills: {' '.join(seen)}; all bits equal")
