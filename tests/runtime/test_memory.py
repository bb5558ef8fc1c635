"""Test that the memory estimate agrees with torch's profiler and the system; a run that is out of memory continues."""

import json
import os
import platform
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mostly_slow import mostly_slow
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from minigpt.config import ModelConfig, OptimizerConfig, RunConfig, ScheduleConfig, TrainConfig
from minigpt.errors import ConfigError, RunError
from minigpt.model import GPT
from minigpt.runtime.autotune import time_kernels
from minigpt.runtime.device import Runtime, out_of_memory
from minigpt.runtime.memory import host_memory
from minigpt.runtime.memory_estimate import Memory, training_memory
from minigpt.runtime.precision import self_test
from minigpt.runtime.ranks import Ranks
from minigpt.training import Trainer, accumulate, make_optimizer, memory, update
from minigpt.training.memory import (
    MicroBatches,
    UnbuiltRun,
    choose_micro_batch,
    divisors,
    fastest,
    memory_errors,
    to_move,
    try_pass,
)
from minigpt.weights import checkpoint

CPU, CPU16 = (Runtime(torch.device("cpu"), precision) for precision in ("fp32", "bf16"))
TINY = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16)
SHAPES = {
    "sdpa": (ModelConfig(vocab_size=96, embed_dim=64, num_heads=2, num_layers=4, max_seq_len=128), 8, 8),
    "reference": (
        ModelConfig(vocab_size=96, embed_dim=64, num_heads=2, num_layers=4, max_seq_len=128, attention="reference"),
        8, 8,
    ),
    "blockwise": (
        ModelConfig(vocab_size=96, embed_dim=64, num_heads=2, num_layers=4, max_seq_len=512, attention="blockwise"),
        2, 2,
    ),
    "accumulation, dropout, biases": (
        ModelConfig(vocab_size=4096, embed_dim=64, num_heads=2, num_layers=2, max_seq_len=96, dropout=0.1, bias=True),
        4, 2,
    ),
    "a wide model": (ModelConfig(vocab_size=300, embed_dim=192, num_heads=4, num_kv_heads=2, max_seq_len=32), 2, 2),
    "locked dropouts": (
        ModelConfig(
            vocab_size=96, embed_dim=64, num_heads=2, num_layers=4, max_seq_len=512, qkv_dropout=0.1,
            hidden_dropout=0.1, block_dropout=0.1, locked_dropout=("qkv", "hidden", "block"),
        ),
        2, 2,
    ),
    "a mixture": (
        ModelConfig(vocab_size=500, embed_dim=64, num_heads=2, num_layers=2, max_seq_len=64, softmaxes=3), 16, 16,
    ),
    "a mixture in pieces": (
        ModelConfig(vocab_size=20000, embed_dim=32, num_heads=2, num_layers=1, max_seq_len=64, softmaxes=3), 8, 8,
    ),
    "logits in pieces": (
        ModelConfig(vocab_size=40000, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=128), 8, 8,
    ),
}  # fmt: skip


def allocated(shape: ModelConfig, batch: int, micro: int, runtime: Runtime, kind: str) -> int:
    """The most bytes that torch's allocator held during two steps, by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        model = GPT(shape)
        optimizer = make_optimizer(model, OptimizerConfig(kind=kind), runtime.precision)
        rows = torch.zeros(batch, shape.max_seq_len, dtype=torch.long)
        for _ in range(2):
            accumulate(model, list(zip(rows.split(micro), rows.split(micro), strict=True)), runtime=runtime)
            update(model, optimizer, runtime=runtime)
    now = peak = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    return peak


@pytest.mark.parametrize("name", mostly_slow(SHAPES, [0, 2, 4]))
def test_the_estimate_is_what_torchs_profiler_counts(name: str) -> None:
    shape, batch, micro = SHAPES[name]
    for runtime, kind in ((CPU, "muon"), (CPU16, "adamw")) if batch == micro else ((CPU, "adamw"),):
        said = training_memory(shape, micro, runtime, optimizer=kind, accumulates=micro < batch)
        real = allocated(shape, batch, micro, runtime, kind)
        print(f"{name}, {runtime.precision}, {kind}: {said.total / 1e6:.1f} MB, really {real / 1e6:.1f}")
        assert 0.9 * real < said.total < 1.12 * real


def test_muon_an_average_masters_ranks_and_checkpointing_are_counted() -> None:
    total = 4 * sum(p.numel() for p in GPT(TINY).parameters())
    blocks = 4 * sum(p.numel() for p in GPT(TINY).blocks.parameters() if p.dim() >= 2)
    plain, muon = training_memory(TINY, 4), training_memory(TINY, 4, optimizer="muon", ema=True)
    assert (plain.weights, plain.gradients, plain.optimizer, plain.average) == (total, total, 2 * total, 0)
    assert (muon.optimizer, muon.average) == (2 * total - blocks, total)
    pure = training_memory(TINY, 4, Runtime(CPU.device, "bf16-pure"))
    assert (pure.weights, pure.gradients, pure.optimizer) == (total // 2, total // 2, 3 * total)
    parted = training_memory(TINY, 4, shards=4)
    assert (parted.weights, parted.optimizer) == (total // 4, total // 2)
    deep = TINY.model_copy(update={"num_layers": 16})
    assert training_memory(deep, 64, checkpointing=True).activations < training_memory(deep, 64).activations / 4


def test_what_is_measured_before_a_run_makes_no_table_of_bigrams() -> None:
    """Drawing a table of 65,536 rows and 768 columns takes half a second, and several would be drawn."""
    shape = TINY.model_copy(update={"bigrams": 100_000})
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        assert training_memory(shape, 4).weights == training_memory(TINY, 4).weights + 4 * 100_000 * 32
        assert self_test(shape, CPU16).ok
        time_kernels(shape, CPU, 4, ["sdpa"], [])
    sizes = [event.nbytes() for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert 0 < max(sizes) < 4 * 100_000 * 32


def machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    """A root with 8 GB, 6 of them free, and files of control groups."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text("MemTotal:  8000000 kB\nMemFree: 1 kB\nMemAvailable:  6000000 kB\n")
    (root / "proc/self/cgroup").write_text(groups)
    for name, text in files.items():
        path = root / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/\n", {}, 6000000 * 1024),
        ("0::/a/b\n", {"a/memory.max": "1000\n", "a/memory.current": "400", "a/b/memory.max": "max",
                       "a/b/memory.current": "300", "a/memory.stat": "inactive_file 100\n"}, 700),
        ("4:memory:/a\n1:cpu:/\n", {"memory/a/memory.limit_in_bytes": "5000", "memory/a/memory.usage_in_bytes": "2000",
                                    "memory/memory.limit_in_bytes": "900", "memory/memory.usage_in_bytes": "1000"}, 0),
        ("0::/elsewhere\n", {"memory.max": "70", "memory.current": "20"}, 50),
    ],
)  # fmt: skip
def test_free_memory_is_the_least_of_machine_and_control_groups(groups: str, files, free: int, tmp_path: Path) -> None:
    assert host_memory(machine(tmp_path, groups, files))[1] == free


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux: only there the limit is read")
def test_a_limit_on_address_space_is_a_limit_on_what_is_free() -> None:
    resource = pytest.importorskip("resource")
    code = "from minigpt.runtime.memory import host_memory; import sys; print(*host_memory(), 'torch' in sys.modules)"
    limit = 300_000_000
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )  # fmt: skip
    total, free, torch_there = done.stdout.split()
    assert int(total) == limit
    assert limit / 2 < int(free) < limit
    assert torch_there == "False", "the doctor reads memory also if torch is broken"


def test_auto_takes_the_fastest_that_fits_and_gives_up_on_what_is_slower() -> None:
    tried: list[int] = []

    def attempt(size: int) -> float | None:
        tried.append(size)
        return {1: 1.0, 2: 1.2, 4: 2.0, 8: 6.0, 16: 14.0, 32: 20.0, 64: None}[size]

    assert fastest([1, 2, 4, 8, 16, 32, 64], attempt) == 4
    assert tried == [1, 2, 4, 8, 16, 32]
    assert fastest([1, 2, 4], lambda size: 1.0 if size < 4 else None) == 2
    assert fastest([1, 2, 4], lambda size: 1.0, limit=0.0) == 1
    assert divisors(12) == [12, 6, 4, 3, 2, 1]


class Counting:
    """Sequences that count upwards: batch k of 8 rows is a pure function of k."""

    steps_per_epoch, tokens_per_step = 10.0, 8 * 16

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        rows = (torch.arange(8)[:, None] * (step + 1) + torch.arange(17)) % 20
        return rows[:, :-1], rows[:, 1:]


class Cramped(GPT):
    """Runs out of memory above `room` rows, everywhere or in evaluation only, with the messages of torch's
    allocators.
    """

    room, only_evaluating = 8, False

    def loss(self, tokens: Tensor, targets: Tensor, **settings) -> Tensor:
        if len(tokens) > self.room and not (self.only_evaluating and self.training):
            if self.training:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory")
        return super().loss(tokens, targets, **settings)


def cramped(room: int, hooks=(), shape: ModelConfig = TINY, **settings) -> Trainer:
    model = Cramped(shape, seed=1)
    model.room = room
    source = Counting()

    def validation():
        inputs, targets = source.batch(99)
        size = trainer.state.micro_batch_size or 8
        return list(zip(inputs.split(size), targets.split(size), strict=True))

    config = TrainConfig(batch_size=8, **{"max_steps": 6, "eval_every": 3, **settings})
    trainer = Trainer(
        model, make_optimizer(model, OptimizerConfig(), "fp32"), source, validation, config,
        ScheduleConfig(warmup_steps=2), CPU, 3e-3, hooks,
    )  # fmt: skip
    return trainer


def test_out_of_memory_the_run_continues_with_smaller_micro_batches(tmp_path: Path) -> None:
    lines: list[str] = []
    small, ample = cramped(room=2, hooks=[MicroBatches(lines.append)]), cramped(room=8, micro_batch_size=2)
    states = small.run(), ample.run()
    assert [state.micro_batch_size for state in states] == [2, None]
    assert states[0].val_loss == pytest.approx(states[1].val_loss, abs=1e-6)
    off = max((a - b).abs().max() for a, b in zip(small.model.parameters(), ample.model.parameters(), strict=True))
    print(f"largest difference of a weight: {off:.1e}")
    assert off <= 1e-6
    assert lines == ["memory ran out at step 1: 2 sequences at a time from now on; the batch is still 8"]
    cramped(room=1, hooks=[MicroBatches(lines.append)], max_steps=1).run()
    assert lines[-1] == "memory ran out at step 1: 1 sequence at a time from now on; the batch is still 8"
    saved = checkpoint.save(tmp_path / "step-00000006", small.tensors(), small.checkpoint_state())
    again = cramped(room=2, max_steps=8)
    again.resume(checkpoint.load(saved, ("model", "optimizer")))
    assert again.state.micro_batch_size == 2
    lines.clear()
    assert again.run().step == 8
    assert lines == []


def test_out_of_memory_evaluation_takes_smaller_batches() -> None:
    trainer = cramped(room=4, shape=TINY.model_copy(update={"dropout": 0.2}))
    trainer.model.only_evaluating = True
    modes: list[bool] = []
    trainer.model.embedding.register_forward_hook(lambda *_: modes.append(trainer.model.training))
    state = trainer.run()
    assert state.micro_batch_size == 4
    assert modes.count(False) == 3 * 2, "three evaluations, the first at the start, of two batches each"
    assert modes.count(True) == 6 * 2, "six batches in halves"


def test_after_out_of_memory_a_still_smaller_micro_batch_can_be_set() -> None:
    lines: list[str] = []
    trainer = cramped(room=8, micro_batch_size=1, hooks=[MicroBatches(lines.append)])
    trainer.state.micro_batch_size = 4  # the resumed run found this
    rows: list[int] = []
    trainer.model.embedding.register_forward_hook(
        lambda _module, inputs, _output: rows.append(len(inputs[0])) if trainer.model.training else None
    )
    trainer.run()
    assert set(rows) == {1}
    trainer.state.micro_batch_size = 8  # as after a rollback
    trainer.hooks[0].on_step(trainer)
    assert lines == [], "no memory ran out"


def test_no_memory_at_all_is_one_clear_error() -> None:
    trainer = cramped(room=0)
    with pytest.raises(RunError, match=r"memory ran out at step 0; .* lower model\.max"), memory_errors(trainer):
        trainer.run()
    with pytest.raises(ValueError, match="another"), memory_errors(trainer):
        raise ValueError("another")
    assert out_of_memory(RuntimeError("std::bad_alloc"))


def test_a_trial_pass_gives_seconds_or_out_of_memory_and_leaves_nothing() -> None:
    trainer = cramped(room=4)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    assert (try_pass(trainer.model, trainer.batches.batch(0), 4, CPU) or 0) > 0
    assert try_pass(trainer.model, trainer.batches.batch(0), 8, CPU) is None
    for parameter, old in zip(trainer.model.parameters(), before, strict=True):
        assert parameter.grad is None
        assert torch.equal(parameter, old)


def test_auto_is_found_written_down_and_kept_by_a_resumed_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cli_run import SMALL, text

    from minigpt.cli import main
    from minigpt.config import load_config

    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cats.txt").write_text(text(100))
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path), "--name", "cats"]
    argv += ["--train.micro-batch-size", "auto", "--train.compile", "off", "--train.sample-every", "0"]
    monkeypatch.setattr(
        memory, "try_pass", lambda learner, batch, size, runtime: {1: 1.0, 2: 1.1, 4: 1.2, 8: 4.0}[size]
    )
    assert main([*argv, "--train.max-steps", "4"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "4 sequences at a time" in said
    assert "GB" in said
    assert load_config(tmp_path / "cats" / "config.yaml").train.micro_batch_size == 4
    saved = checkpoint.load(tmp_path / "cats" / "checkpoints" / "last")
    assert saved.state.micro_batch_size == 4
    monkeypatch.setattr(memory, "find", lambda *_: pytest.fail("it was found before"))
    assert main([*argv, "--train.max-steps", "6", "--resume"]) == 0
    assert load_config(tmp_path / "cats" / "config.yaml").train.micro_batch_size == 4
    # a batch that does not fit gives a warning with a number that does
    monkeypatch.setattr(memory, "free_memory", lambda device: 151_000_000)
    capsys.readouterr()
    assert main([*argv[:-6], "--train.max-steps", "1", "--name", "large"]) == 0
    assert "this may not fit; set --train.micro-batch-size" in " ".join(capsys.readouterr().err.split())


def test_the_ranks_of_a_host_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    class OneOfFour(Ranks):
        rank, world, here = 0, 4, 4

    monkeypatch.setattr(memory, "free_memory", lambda device: 4_000_000_000)
    config, said = RunConfig(model=TINY), list[str]()
    run = UnbuiltRun(config, replace(CPU, ranks=OneOfFour()), Counting(), 1.0, 1, lambda: GPT(TINY))
    choose_micro_batch(run, None, said.append)
    assert "of 0.85 GB" in said[0]


def test_the_estimate_counts_models_that_the_loss_needs_and_both_rows_of_a_pair() -> None:
    teacher = GPT(TINY)
    size = 4 * sum(parameter.numel() for parameter in teacher.parameters())
    assert (to_move([teacher], CPU.device), to_move([teacher] * 2, torch.device("meta"))) == (0, 2 * size)
    config = RunConfig(model=TINY, train=TrainConfig(batch_size=8))
    pairs = config.changed(finetune={"dpo_beta": 0.1})

    def needed(config: RunConfig, rows: int, others: int) -> Memory:
        return UnbuiltRun(config, CPU, Counting(), 1.0, 1, lambda: teacher, others).needed(rows)

    plain = needed(config, 8, 0)
    assert needed(config, 8, size).total == plain.total + size
    assert needed(pairs, 4, 0).activations >= plain.activations


def test_micro_batch_sizes_that_are_none_are_refused() -> None:
    from minigpt.config import load_config

    with pytest.raises(ConfigError, match="micro_batch_size"):
        load_config(None, {"train.micro_batch_size": "most"})
    assert load_config(None, {"train.micro_batch_size": "auto"}).train.rows == 32


LIMITED = """
import json, re, resource, sys, threading
import torch
from test_memory import *

room, micro = int(sys.argv[1]), int(sys.argv[2])
torch.set_num_threads(1)

class Wide(Counting):
    tokens_per_step = 32 * 256
    def batch(self, step, rank=0, world=1):
        rows = (torch.arange(32)[:, None] * (step + 1) + torch.arange(257)) % 96
        return rows[:, :-1], rows[:, 1:]

shape = ModelConfig(vocab_size=96, embed_dim=64, num_heads=8, num_layers=2, max_seq_len=256, attention="reference")
model, source = GPT(shape, seed=1), Wide()
lines = []
trainer = Trainer(model, make_optimizer(model, OptimizerConfig(), "fp32"), source, lambda: [],
    TrainConfig(batch_size=32, micro_batch_size=micro or None, max_steps=3, eval_every=100),
    ScheduleConfig(warmup_steps=2), CPU, 3e-3, [MicroBatches(lines.append)])
other = cramped(room=8, max_steps=1)  # what torch loads for a first step is loaded then
other.run()
accumulate(model, [tuple(side[:1] for side in source.batch(0))], runtime=CPU)
def highest():  # not ru_maxrss, which begins with the value of the parent process
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
before = highest()
said = training_memory(shape, micro or 32, CPU, optimizer="muon", accumulates=0 < micro < 32)
if room:
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + room, used + room))
state = trainer.run()
grown = highest() - before
total = sum(p.double().sum().item() for p in model.parameters())
print(json.dumps({"micro": state.micro_batch_size, "step": state.step, "tokens": state.tokens, "sum": total,
    "loss": trainer.loss.item(), "grown": grown, "said": said.total - said.weights, "lines": lines}))
"""


def limited(room: int, micro: int, **environment: str) -> dict:
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(room), str(micro)],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


FAULTS = """\
import resource, torch
from minigpt.runtime.memory import keep_freed_pages

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [torch.ones(1 << 18) for _ in range(64)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults(), keep_freed_pages(), faults(), faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again_without_a_page_fault() -> None:
    found = {}
    for name, settings in {"plain": {}, "set": {"MALLOC_MMAP_THRESHOLD_": "65536"}}.items():
        done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env={
            **{key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}, **settings
        })  # fmt: skip
        found[name] = done.stdout.split()
    before, kept, _, after = found["set"]
    assert kept == "False" and min(int(before), int(after)) > 10_000, "the person's own settings stay"
    _, kept, _, after = found["plain"]
    print(f"3 x 64 MB: {before} page faults where glibc keeps nothing, {after} where it keeps what is freed")
    assert kept == "True" and int(after) < 1_000


@pytest.mark.slow
def test_under_a_real_memory_limit_the_run_finishes_with_the_same_batch() -> None:
    tight, ample = limited(room=300_000_000, micro=0), limited(room=0, micro=8)
    print(f"limit 300 MB: {tight['lines']}; loss {tight['loss']:.6f}, without a limit {ample['loss']:.6f}")
    assert 1 <= tight["micro"] <= 16
    assert (tight["step"], tight["tokens"]) == (ample["step"], ample["tokens"]) == (3, 3 * 32 * 256)
    assert "the batch is still 32" in tight["lines"][0]
    assert tight["loss"] == pytest.approx(ample["loss"], abs=1e-5)
    assert tight["sum"] == pytest.approx(ample["sum"], rel=1e-5)


@pytest.mark.slow
def test_the_estimate_is_what_the_process_grows_by() -> None:
    seen = limited(room=0, micro=0, MALLOC_MMAP_THRESHOLD_="65536")  # glibc then keeps no freed memory
    print(f"{seen['said'] / 1e6:.0f} MB said, {seen['grown'] / 1e6:.0f} MB grown")
    assert 0.9 * seen["grown"] < seen["said"] < 1.12 * seen["grown"]
