"""Measure the speed of optimizer steps, next to the machine's limits and rivals, for `minigpt bench train`.

The input is one batch of random ids for all steps and sides, since the cost of a step does not depend on the ids. MFU
is the step's FLOP/s as a share of those of a large matrix product, in the same precision and the same process.
"""

import itertools
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.config import RunConfig
from minigpt.errors import ConfigError, first_line
from minigpt.machine.bench.machine import Machine, about, ceilings, enough_memory, peak_memory, start_memory
from minigpt.machine.bench.profile import Profile, check_profile, profiled
from minigpt.machine.bench.rivals import Counterpart, build_counterpart, find_counterpart
from minigpt.machine.bench.shape import with_vocabulary
from minigpt.machine.bench.timing import Spread, SpreadFigures, Tell, alternate, rounded, speed_ratio, stopwatch
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token
from minigpt.runtime.autotune import Choice, choose
from minigpt.runtime.device import Runtime, make_runtime, out_of_memory
from minigpt.runtime.precision import with_masters
from minigpt.training import accumulate, make_optimizer, update

PROFILED_STEPS = 2
MicroBatches = list[tuple[Tensor, Tensor]]
Warm = Callable[["Side"], "Side"]


class Setting(TypedDict):
    """The model and the batch that are trained."""

    model: dict[str, Any]
    batch_size: int
    micro_batch_size: int
    tokens_per_step: int
    flops_per_token: int


class TrainSide(TypedDict):
    """One side's figures. ratio: our speed / this side's speed; None for ours."""

    name: str
    precision: str
    compiled: bool
    parameters: int
    ms_per_step: SpreadFigures
    tokens_per_second: float
    gflops_per_second: float
    mfu: float
    first_step_seconds: float
    ratio: float | None


class TrainReport(Setting, Machine):
    """The object that `minigpt bench train --json` prints."""

    ceilings_gflops: dict[str, float]
    peak_memory_bytes: int | None
    steps: int
    warmup: int
    rounds: int
    sides: list[TrainSide]
    notes: list[str]
    profile: Profile | None


@dataclass
class Side:
    """A side that trains. `step` does one optimizer step and waits for the device."""

    name: str
    precision: str
    compiled: bool
    parameters: int
    step: Callable[[], None]
    first_seconds: float = 0.0

    def round(self, steps: int) -> list[float]:
        """Seconds of each of `steps` steps."""
        return [stopwatch(self.step) for _ in range(steps)]


def bench_train(
    config: RunConfig,
    *,
    steps: int = 10,
    warmup: int = 3,
    rounds: int = 3,
    vs_hf: bool = False,
    profile: Path | None = None,
    tell: Tell = lambda what: None,
) -> TrainReport:
    """Measure optimizer steps of the config's shape on random ids.

    Args:
        config: the model, the optimizer, and these fields of train: batch_size, micro_batch_size, grad_clip, device,
            precision, compile, seed. If vocab_size is not set, the size of the tokenizer is used.
        steps: number of timed steps per round; each is timed alone.
        warmup: number of steps before these, in addition to the first.
        rounds: number of rounds, in which the sides take turns; only one without a rival.
        vs_hf: also measure transformers, eager in fp32 and compiled in bf16. Then all sides use AdamW.
        profile: file for a trace of two of our steps.

    Raises:
        UserError: transformers is not installed, memory ran out, or the trace cannot be written.
    """
    check_profile(profile)
    config, notes = with_vocabulary(config), list[str]()
    counterpart = find_counterpart(config.model) if vs_hf else None
    if counterpart:
        config, notes = _with_adamw(config, counterpart)
    runtime = make_runtime(config.train.device, config.train.precision)
    choice = _choose_kernels(config, runtime, notes, tell)
    runtime = replace(runtime, compile=choice.compile)
    tell("measuring the machine")
    peaks = ceilings(runtime.device, {runtime.precision})
    with enough_memory("lower --train.micro-batch-size or the model"):
        start_memory(runtime.device)
        batches = random_batches(config, runtime.device)
        warm = partial(warm_up, warmup=warmup, tell=tell)
        model = GPT(config.model, seed=config.train.seed)
        model.use_attention(choice.attention)
        ours = warm(our_side(model, config, runtime, batches))
        memory = peak_memory(runtime.device)  # only our side's: the rivals are not built yet
        sides = [ours, *(_rivals(counterpart, config, runtime.device, batches, warm, notes) if counterpart else ())]
        jobs = {side.name: lambda side=side: side.round(steps) for side in sides}
        seconds = alternate(jobs, rounds if counterpart else 1, tell)
        trace = profiled(lambda: ours.round(PROFILED_STEPS), runtime, profile) if profile else None
    tokens, flops = config.train.batch_size * config.model.max_seq_len, flops_per_token(config.model)
    return {
        **_setting(config, tokens, flops),
        **about(runtime.device),
        "ceilings_gflops": {name: rounded(value / 1e9) for name, value in peaks.items()},
        "peak_memory_bytes": memory,
        "steps": steps,
        "warmup": warmup,
        "rounds": rounds if counterpart else 1,
        "sides": [side_row(s, seconds[s.name], seconds[ours.name], tokens, flops, peaks[s.precision]) for s in sides],
        "notes": notes,
        "profile": trace,
    }


def _choose_kernels(config: RunConfig, runtime: Runtime, notes: list[str], tell: Tell) -> Choice:
    """Choose as `minigpt train` does for a long run. Raises ConfigError for settings that a benchmark cannot use."""
    if config.train.micro_batch_size == "auto" or config.train.precision == "fp8":
        raise ConfigError("train: a benchmark needs a number as micro_batch_size, and cannot use fp8")
    tell("choosing kernels")
    size = config.train.rows
    choice = choose(config.model, runtime, config.train.compile, size, math.inf, tell)
    notes += [choice.reason] if choice.reason else []
    return choice


def _with_adamw(config: RunConfig, counterpart: Counterpart) -> tuple[RunConfig, list[str]]:
    """The config with AdamW, which all sides use, and the notes that the report needs for this."""
    kind, notes = config.optimizer.kind, list(counterpart.notes)
    if kind == "adamw":
        return config, notes
    notes.append(f"all sides step by AdamW, not by the recipe's {kind}")
    rate = config.optimizer.learning_rate * config.optimizer.adamw_ratio
    return config.changed(optimizer={"kind": "adamw", "learning_rate": rate}), notes


def _setting(config: RunConfig, tokens: int, flops: int) -> Setting:
    return {
        "model": config.model.model_dump(mode="json"),
        "batch_size": config.train.batch_size,
        "micro_batch_size": config.train.rows,
        "tokens_per_step": tokens,
        "flops_per_token": flops,
    }


def warm_up(side: Side, warmup: int, tell: Tell) -> Side:
    """Do the first step, timed separately since it compiles, and `warmup` more. Returns the side."""
    tell(f"{side.name}: first step{', which compiles' if side.compiled else ''}")
    side.first_seconds = stopwatch(side.step)
    tell(f"{side.name}: warming up")
    side.round(warmup)
    return side


def side_row(
    side: Side, rounds: list[list[float]], ours: list[list[float]], tokens: int, flops: int, ceiling: float
) -> TrainSide:
    """Compute one side's figures; its speeds are those of the median step.

    Args:
        rounds, ours: seconds of each step in each round, of this side and of our side.
        tokens: tokens per step.
        flops: FLOPs per token (of our model, for all sides).
        ceiling: FLOP/s that give an MFU of 1.
    """
    spread = Spread.of(list(itertools.chain(*rounds)))
    speed = tokens / spread.median
    ratio = None
    if rounds is not ours:
        ratio = rounded(speed_ratio(*([statistics.median(steps) for steps in sides] for sides in (ours, rounds))))
    return {
        "name": side.name,
        "precision": side.precision,
        "compiled": side.compiled,
        "parameters": side.parameters,
        "ms_per_step": spread.figures(1e3),
        "tokens_per_second": rounded(speed),
        "gflops_per_second": rounded(speed * flops / 1e9),
        "mfu": rounded(speed * flops / ceiling),
        "first_step_seconds": rounded(side.first_seconds),
        "ratio": ratio,
    }


def random_batches(config: RunConfig, device: torch.device) -> MicroBatches:
    """Make one batch as (inputs, targets) pairs, each int64 [micro_batch_size, T]."""
    size = config.train.batch_size, config.model.max_seq_len + 1
    generator = torch.Generator().manual_seed(config.train.seed)
    ids = torch.randint(config.model.vocab_size or 1, size, generator=generator).to(device)
    micro = config.train.rows
    return [(part[:, :-1].contiguous(), part[:, 1:].contiguous()) for part in ids.split(micro)]


def our_side(model: GPT, config: RunConfig, runtime: Runtime, batches: MicroBatches) -> Side:
    """Make the side of minigpt, with the steps of `minigpt train` (without fp16's loss scaling)."""
    model = model.to(runtime.device).train()
    forward = runtime.prepare(model)
    optimizer = with_masters(make_optimizer(model, config.optimizer, runtime.precision), model, runtime)
    number = itertools.count()

    def step() -> None:
        with runtime.products():
            accumulate(forward, batches, runtime=runtime, step=next(number), seed=config.train.seed)
            update(forward, optimizer, runtime=runtime, grad_clip=config.train.grad_clip)
        runtime.synchronise()

    compiled = forward is not model
    return Side(_name("minigpt", runtime.precision, compiled), runtime.precision, compiled, _count(model), step)


def _rivals(
    counterpart: Counterpart,
    config: RunConfig,
    device: torch.device,
    batches: MicroBatches,
    warm: Warm,
    notes: list[str],
) -> Iterator[Side]:
    """Yield transformers, eager in fp32 and compiled in bf16, warmed up. If it does not compile here, add a note."""
    yield warm(hf_side(build_counterpart(counterpart), config, Runtime(device, "fp32"), batches))
    compiled = hf_side(build_counterpart(counterpart), config, Runtime(device, "bf16", compile=True), batches)
    try:
        yield warm(compiled)
    except RuntimeError as error:
        if out_of_memory(error):
            raise
        notes.append(f"{compiled.name} does not work here, so it is left out: {first_line(error)}")


def hf_side(model: nn.Module, config: RunConfig, runtime: Runtime, batches: MicroBatches) -> Side:
    """Make the side of transformers, with a simple training loop and our optimizer."""
    model = model.to(runtime.device).train()
    optimizer = make_optimizer(model, config.optimizer, runtime.precision)
    forward = torch.compile(model, dynamic=False) if runtime.compile else model

    def step() -> None:
        model.zero_grad()
        for inputs, targets in batches:
            with runtime.autocast():
                logits = forward(input_ids=inputs, use_cache=False).logits  # [b, T, V]
                loss = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten()) / len(batches)
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), config.train.grad_clip or float("inf"))
        optimizer.step()
        runtime.synchronise()

    name = _name("transformers", runtime.precision, runtime.compile)
    return Side(name, runtime.precision, runtime.compile, _count(model), step)


def _name(who: str, precision: str, compiled: bool) -> str:
    return f"{who} {precision}{' compiled' if compiled else ''}"


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
