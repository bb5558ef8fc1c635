"""Test whole runs through torchrun: the same recipe, checkpoints for any number of ranks, and errors reported once."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_run import text
from parallel_run import SCRIPT, TORCHRUN, launch
from tuned_run import last_tensors, make_base, questions

from minigpt.cli import main
from minigpt.weights import checkpoint

pytestmark = pytest.mark.slow

FLAGS = (
    "--model.embed-dim 32 --model.num-heads 2 --model.num-layers 2 --model.max-seq-len 32 --model.attention sdpa "
    "--train.device cpu --train.precision fp32 --train.compile off --logging.plots false --logging.log-every 1"
).split()
RUN = (
    "--train.batch-size 8 --schedule.kind constant --schedule.warmup-steps 5 --train.eval-every 10 "
    "--train.save-every 1000 --train.ema-decay 0.9 --optimizer.learning-rate 0.01 --optimizer.adamw-ratio 0.4"
).split()


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cats.txt").write_text(text())
    return tmp_path


def metrics(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def gap(one: Path, two: Path) -> float:
    """The largest difference of two runs' losses, of training and of validation."""
    pairs = list(zip(metrics(one), metrics(two), strict=True))
    assert all(a["step"] == b["step"] for a, b in pairs)
    return max(abs(a[key] - b[key]) for a, b in pairs for key in ("loss", "val_loss") if key in a)


def farthest(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> float:
    assert one.keys() == two.keys()
    return max((tensor - two[name]).abs().max().item() for name, tensor in one.items())


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_a_checkpoint_of_four_ranks_resumes_on_one_two_and_four(kind: str, cats: Path) -> None:
    argv = ["train", "cats.txt", *FLAGS, *RUN, "--train.sample-every", "10"]
    assert main([*argv, "--name", "whole", "--train.max-steps", "40"]) == 0
    argv += ["--name", "parts", "--parallel.kind", kind]
    for until, count in ((10, 4), (20, 1), (30, 2), (40, 4)):
        command = ["-m", "minigpt", *argv, "--train.max-steps", str(until), *(["--resume"] if until > 10 else [])]
        done = launch(count, *command, folder=cats)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("runs/parts") == 1, "one rank prints the result"
        assert done.stderr.count("parameters") == 1
    whole, parts = cats / "runs/whole", cats / "runs/parts"
    lines = gap(whole, parts)
    far = farthest(last_tensors(whole), last_tensors(parts))
    print(f"{kind}: 40 steps on 4, 1, 2, 4 ranks; losses within {lines:.1e} of one process's, tensors within {far:.1e}")
    assert lines < 1e-5
    assert far < 1e-4
    losses = [line["loss"] for line in metrics(parts) if "loss" in line]
    assert sum(losses[-5:]) / 5 < losses[0] - 0.5
    samples = [(run / "samples.jsonl").read_text().splitlines() for run in (whole, parts)]
    assert len(samples[1]) == 4, "one rank writes the samples"
    assert samples[0] == samples[1], "the same weights and seed give the same samples"


def test_checkpoints_in_parts_load_on_any_number_of_ranks_and_join(cats: Path) -> None:
    argv = ["train", "cats.txt", *FLAGS, *RUN, "--train.sample-every", "0"]
    assert main([*argv, "--name", "whole", "--train.max-steps", "40"]) == 0
    argv += ["--name", "parts", "--parallel.kind", "fsdp", "--parallel.sharded-checkpoints", "true"]
    parts = cats / "runs/parts"
    for until, count in ((10, 4), (20, 2), (30, 1), (40, 4)):
        command = ["-m", "minigpt", *argv, "--train.max-steps", str(until), *(["--resume"] if until > 10 else [])]
        done = launch(count, *command, folder=cats)
        assert done.returncode == 0, done.stderr
        files = sorted(path.name for path in (parts / f"checkpoints/step-{until:08d}").glob("shard-*"))
        assert len(files) == (count if count > 1 else 0), "each rank writes a part"
    before, lines = last_tensors(parts), gap(cats / "runs/whole", parts)
    far = farthest(last_tensors(cats / "runs/whole"), before)
    assert lines < 1e-5
    assert far < 1e-4
    assert main(["runs", "consolidate", "runs/parts"]) == 0
    last = checkpoint.resolve(parts / "checkpoints" / "last")
    assert (last / "model.safetensors").is_file()
    assert not list(last.glob("shard-*"))
    after = last_tensors(parts)
    assert farthest(before, after) == 0
    assert main(["eval", "runs/parts", "--json"]) == 0
    print(f"parts of 4, 2 and 4 ranks: losses within {lines:.1e} of one process's, tensors within {far:.1e}")
    assert main(["runs", "consolidate", "runs/parts"]) == 2


@pytest.mark.parametrize(("how", "rank", "words"), [
    ("storage", 0, r"minigpt: runs/x: the disk is full"),
    ("storage", 1, r"minigpt: runs/x: the disk is full"),
    ("bug", 1, r"KeyError: 'a bug'"),
    ("kill", 1, r"minigpt: rank 0 on \S+ lost another rank"),
    ("kill", 0, r"minigpt: rank 1 on \S+ lost another rank"),
    ("stop", 1, r"minigpt: rank 0 on \S+ lost another rank, or waited 5 s.*--parallel.timeout-seconds"),
])  # fmt: skip
def test_a_failure_of_one_rank_is_reported_once_and_ends_all(how: str, rank: int, words: str, tmp_path: Path) -> None:
    timeout = 5 if how == "stop" else 600
    asked = json.dumps({"fail": how, "rank": rank, "timeout": timeout})
    # torchrun looks at its ranks for the first time after 20 seconds; if it looked between the failure of one rank and
    # the report of the other, it would end that rank first
    done = launch(2, "--monitor-interval", "20", SCRIPT, asked, folder=tmp_path)
    seconds = time.time() - float(done.stdout.rpartition("failing at ")[2])
    print(f"{how} on rank {rank}: all had ended after {seconds:.1f} s")
    assert done.returncode
    assert len(re.findall(words, done.stderr)) == 1, done.stderr
    assert done.stderr.count("minigpt: ") + done.stderr.count("KeyError: ") == 1, done.stderr


def test_a_mistake_in_the_settings_is_reported_once(cats: Path) -> None:
    for flags, words in (
        (["--train.batch-size", "9"], "minigpt: --train.batch-size: 9 is not a multiple of the 2 ranks; 8 or 10 is"),
        (["--train.batch-siez", "9"], "minigpt: --train.batch-siez: no such setting"),
    ):
        done = launch(2, "-m", "minigpt", "train", "cats.txt", *FLAGS, *flags, folder=cats)
        assert done.returncode
        assert done.stderr.count(words) == 1, done.stderr
        assert done.stderr.count("minigpt: ") == 1, done.stderr
        assert not (cats / "runs").exists()


def test_finetuning_on_two_ranks_equals_one(cats: Path) -> None:
    base = make_base(cats / "base")
    data = questions(cats / "answers.jsonl")
    flags = (
        "--train.device cpu --train.precision fp32 --model.attention sdpa --logging.plots false --train.max-steps 8 "
        "--train.batch-size 4 --train.sample-every 0 --logging.log-every 1 --train.eval-every 4 --lora.rank 4"
    ).split()
    argv = ["finetune", str(base), str(data), *flags]
    assert main([*argv, "--name", "one"]) == 0
    done = launch(2, "-m", "minigpt", *argv, "--name", "two", folder=cats)
    assert done.returncode == 0, done.stderr
    one, two = cats / "runs/one", cats / "runs/two"
    far = farthest(last_tensors(one), last_tensors(two))
    print(f"LoRA on 2 ranks: losses within {gap(one, two):.1e}, tensors within {far:.1e} of one process's")
    assert gap(one, two) < 1e-5
    assert far < 1e-4  # Adam's first steps divide by gradients that are nearly nothing
    done = launch(2, "-m", "minigpt", *argv, "--name", "no", "--parallel.kind", "fsdp", folder=cats)
    assert done.stderr.count("minigpt: --parallel.kind: fsdp cannot fine-tune") == 1, done.stderr


def test_bf16_compiled_and_recomputed_blocks_learn_as_one_process_does(cats: Path) -> None:
    flags = [*FLAGS, *RUN, "--train.precision", "bf16", "--train.compile", "on", "--train.max-steps", "20"]
    flags += ["--train.sample-every", "0", "--parallel.activation-checkpointing", "true"]
    assert main(["train", "cats.txt", *flags, "--name", "one"]) == 0
    for kind in ("ddp", "fsdp"):
        argv = ["-m", "minigpt", "train", "cats.txt", *flags, "--name", kind, "--parallel.kind", kind]
        done = launch(2, *argv, folder=cats, timeout=600)
        assert done.returncode == 0, done.stderr
        assert "compiled, 2 ranks" in " ".join(done.stderr.split()), done.stderr
        far = gap(cats / "runs/one", cats / "runs" / kind)
        print(f"bf16, compiled, recomputed, {kind} on 2 ranks: losses within {far:.1e} of one process's")
        assert far < 0.03


def test_sigterm_to_torchrun_saves_and_the_same_command_goes_on(cats: Path) -> None:
    argv = [*TORCHRUN, "--nproc-per-node", "2", "-m", "minigpt", "train", "cats.txt", *FLAGS, *RUN, "--name", "cut"]
    argv += ["--train.max-steps", "100000", "--train.sample-every", "0"]
    process = subprocess.Popen(argv, cwd=cats, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    lines = cats / "runs/cut/metrics.jsonl"
    until = time.monotonic() + 200
    while not (lines.exists() and len(metrics(lines.parent)) > 3) and time.monotonic() < until:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.2)
    process.terminate()
    _, err = process.communicate(timeout=100)
    last = vars(checkpoint.load(cats / "runs/cut/checkpoints/last").train)
    assert last["step"] == metrics(lines.parent)[-1]["step"], "the last step of all is saved"
    assert last["stop_reason"].startswith("interrupted")
    assert err.count("saved; the same command continues") == 1, err
    done = launch(2, *argv[6:-4], "--train.max-steps", str(last["step"] + 3), "--resume", folder=cats)
    assert done.returncode == 0, done.stderr
    assert metrics(lines.parent)[-1]["step"] == last["step"] + 3
