"""Test one run that is interrupted a hundred times: it ends with the bits of a run without interruption.

SIGKILL at random moments; SIGTERM; a full disk; a byte flipped in the newest checkpoint after a SIGKILL. Every attempt
is forked from a process that has imported torch once, since importing it takes longer than an attempt. How far the
disturbed run gets depends on the machine: its length is set afterwards, and the undisturbed run has the same one.
"""

import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from minigpt.errors import CheckpointError
from minigpt.files import read_lines
from minigpt.layout import whole_steps
from minigpt.weights import checkpoint

DISTURBANCES = 100
EVERY = 4
SEED = 20261121
FLAGS = (
    "stories --data.stories-count 40 --model.embed-dim 16 --model.num-heads 2 --model.num-layers 1 "
    "--model.max-seq-len 16 --model.dropout 0.1 --model.attention sdpa --train.batch-size 4 --train.micro-batch-size 2 "
    "--train.ema-decay 0.9 --train.eval-every 10 --train.eval-batches 2 --schedule.kind constant "
    f"--train.save-every {EVERY} --train.keep-checkpoints 3 --train.sample-every 0 --schedule.warmup-steps 10 "
    "--train.compile off --train.device cpu --train.precision fp32 --logging.plots false --logging.log-every 1"
).split()


def attempt(folder: Path, name: str, length: list[str], log: Path) -> None:
    """Run the command, the same one every time except for its length."""
    from minigpt.cli import main
    from minigpt.training.hooks import metrics

    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    metrics.peak_flops = lambda device, precision: 1e12  # measuring takes longer than an attempt
    torch.set_num_threads(1)
    sys.exit(main(["train", *FLAGS, *length, "--logging.runs-dir", str(folder), "--name", name]))


def logged(run: Path) -> int:
    """The last step in the metrics, whole lines only."""
    path = run / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return int(json.loads(lines[-1])["step"]) if lines else 0


def stamp(file: Path) -> int:
    """When the file was written: an attempt first drops the lines after its checkpoint."""
    return file.stat().st_mtime_ns if file.exists() else 0


def saved(run: Path) -> int:
    """The step that the run must continue from: of the whole checkpoints, the one that `last` names, else the
    newest.
    """
    folder = run / "checkpoints"
    newest = reversed(whole_steps(folder))
    for path in [checkpoint.resolve(folder / "last"), *newest] if whole_steps(folder) else []:
        try:
            checkpoint.verify(path)
            return int(path.name[5:])
        except CheckpointError:
            continue
    return 0


@contextmanager
def small_disk(folder: Path) -> Iterator[str]:
    """The folder as a disk of 4 MB; if that is not allowed, the reason."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False) if os.geteuid() == 0 else None
    try:
        yield "" if done and not done.returncode else (done.stderr.strip() if done else "only root may mount")
    finally:
        if done and not done.returncode:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Fill the rest of the disk."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return filler


def flip(chance: random.Random, run: Path) -> bool:
    """Flip one bit of the last checkpoint, if it is whole and another is left."""
    if len(whole_steps(run / "checkpoints")) < 2:
        return False
    step = checkpoint.resolve(run / "checkpoints" / "last")
    if int(step.name[5:]) != saved(run):
        return False
    file = step / chance.choice(["model", "ema", "optimizer"])
    file = chance.choice([file.with_suffix(".safetensors"), step / "state.json"])
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)
    with pytest.raises(CheckpointError):
        checkpoint.verify(step)
    return True


def disturb(kind: str, process: ForkServerProcess, run: Path, log: Path) -> None:
    """Disturb the process, and check that it ends as it should."""
    filler = fill(run.parent) if kind == "full disk" else None
    if not filler:
        os.kill(process.pid or 0, signal.SIGTERM if kind == "SIGTERM" else signal.SIGKILL)
    process.join(120)
    text = log.read_text() if log.exists() else ""
    if filler:
        filler.unlink()
        assert process.exitcode == 2 and text.count("minigpt: ") == 1, text
        assert "the disk is full" in text or "No space left" in text, text
    elif kind == "SIGTERM":
        assert process.exitcode in (143, -signal.SIGTERM), text  # the second if the process was still starting
    else:
        assert process.exitcode == -signal.SIGKILL, text
    assert "Traceback" not in text, text


def final(run: Path, steps: int) -> dict[str, torch.Tensor]:
    step = checkpoint.resolve(run / "checkpoints" / "last")
    assert step.name == f"step-{steps:08d}"
    return {
        f"{part} {name}": tensor
        for part in ("model", "ema", "optimizer")
        for name, tensor in load_file(step / f"{part}.safetensors").items()
    }


def goes_on_from(log: Path) -> int | None:
    """The step that an attempt said it continues from, if it got so far."""
    said = re.search(r"continues from\s+step\s+(\d+)", log.read_text() if log.exists() else "")
    return int(said[1]) if said else None


@pytest.mark.slow
def test_a_hundred_disturbances_change_no_bit(tmp_path: Path) -> None:
    context = get_context("forkserver")
    context.set_forkserver_preload(["minigpt.runs.train", "minigpt.cli.train", "torch._dynamo"])
    chance, log, began = random.Random(SEED), tmp_path / "stderr", time.perf_counter()
    counts, lost, resumed = Counter[str](), Counter[str](), 0

    def start(name: str, *length: str) -> ForkServerProcess:
        log.unlink(missing_ok=True)
        process = context.Process(target=attempt, args=(tmp_path / "disk", name, list(length), log))
        process.start()
        return process

    with small_disk(tmp_path / "disk") as refused:
        kinds = ["SIGKILL", "SIGTERM", "flipped byte"] + ([] if refused else ["full disk"])
        run = tmp_path / "disk" / "run"
        metrics = run / "metrics.jsonl"
        while counts.total() < DISTURBANCES:
            expected, before = saved(run), stamp(metrics)
            kind, goal = chance.choice(kinds), expected + chance.randint(1, 6)
            process = start("run", "--train.max-steps", "1000000")
            # a tenth of them perhaps while the process starts
            end = time.monotonic() + (chance.uniform(0, 0.5) if counts.total() % 10 == 9 else math.inf)
            while process.is_alive() and time.monotonic() < end:
                if stamp(metrics) > before and logged(run) >= goal:
                    break
                time.sleep(0.004)
            time.sleep(chance.uniform(0, 0.02))  # a few steps
            assert process.is_alive(), f"ended after {counts.total()} disturbances: {log.read_text()}"
            disturb(kind, process, run, log)
            assert goes_on_from(log) in (None, expected), log.read_text()
            resumed += goes_on_from(log) is not None
            reached = logged(run) if stamp(metrics) > before else expected
            if kind == "flipped byte" and not flip(chance, run):
                kind = "SIGKILL"
            counts[kind] += 1
            lost[kind] += reached - saved(run)
            assert kind == "flipped byte" or reached - saved(run) <= (0 if kind == "SIGTERM" else EVERY)
        steps = saved(run) + 25  # with evaluations and checkpoints
        for name, length in [("run", ["--resume"]), ("whole", [])]:
            process = start(name, *length, "--train.max-steps", str(steps))
            process.join(300)
            assert process.exitcode == 0, log.read_text()
        assert not list((run / "checkpoints").glob(".*")), "nothing half-written is left"
        damaged = len(list((run / "checkpoints").glob("damaged-*")))
        assert damaged == counts["flipped byte"]
        ours, theirs = final(run, steps), final(tmp_path / "disk" / "whole", steps)
        assert ours.keys() == theirs.keys()
        for key, tensor in theirs.items():
            assert torch.equal(tensor, ours[key]), f"{key} differs"
        lines, undisturbed = (
            [(line["step"], line.get("loss"), line.get("val_loss")) for line in read_lines(folder / "metrics.jsonl")]
            for folder in (run, tmp_path / "disk" / "whole")
        )
        assert lines == undisturbed, "every step's loss, once"
    each = ", ".join(f"{counts[kind]} x {kind} ({lost[kind]} steps lost)" for kind in kinds)
    refusal = f"; no full disk: {refused}" if refused else ""
    print(f"\n{steps} steps, {each}{refusal}; {resumed} times continued from the last whole checkpoint, one every "
          f"{EVERY} steps; all bits equal; {time.perf_counter() - began:.0f} s")  # fmt: skip
