"""How many sequences a forward pass takes: whether the asked number fits in memory, and the best where that is `auto`.

Notable: on a GPU more is faster until memory ends; on a CPU it is not, since what fits in the caches goes faster, so
there the speed is measured too. Ranks must agree and wait for each other, so several of them go by the estimate alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from minigpt.config import RunConfig
from minigpt.errors import RunError
from minigpt.runtime.device import out_of_memory
from minigpt.runtime.memory import free_memory
from minigpt.runtime.memory_estimate import Memory, training_memory
from minigpt.training import Hook, Trainer, accumulate

SAFE = 0.9
"""Share of what is free that an estimate may take: it has been within a tenth of what was measured."""
KEPT = 150_000_000
"""Bytes of freed blocks that glibc's allocator keeps for itself (on a CPU, measured: 136 to 165 MB)."""
HOPEFUL = 1.2
"""Share of what is free up to which a GPU is tried, since trying costs a moment there."""
SECONDS = 10.0
"""After so long a CPU tries no further size."""
ADVICE = "lower model.max_seq_len or the model's size, or set --parallel.activation-checkpointing true"
Say = Callable[[str], object]


def fit(trainer: Trainer, config: RunConfig, before: Mapping[str, Any], say: Say) -> RunConfig:
    """Tell what memory the run needs and what is free; returns the config, with a number for micro_batch_size: auto.

    Args:
        trainer: built, before its first step; gets the number too.
        config: the run's, all else resolved.
        before: state of the checkpoint to go on from: what was found then is kept.
        say: told one line, or two if it will not fit.
    """
    rows, ranks = _rows(trainer), trainer.runtime.ranks
    asked, free = config.train.micro_batch_size, free_memory(trainer.runtime.device)
    if trainer.runtime.device.type == "cpu" and free is not None:
        free = max(0, free - KEPT)
    if ranks.world > 1 and free is not None:
        free = int(-ranks.largest(-float(free)))  # the least of all
    if asked == "auto":
        found = before.get("micro_batch_size") or find(trainer, config, free)
        train = config.train.model_copy(update={"micro_batch_size": found})
        config = config.model_copy(update={"train": train})
        trainer.config = trainer.config.model_copy(update={"micro_batch_size": found})
    size = min(config.train.rows, rows)
    need = needed(trainer, config, size)
    if free is None:
        say(f"memory: about {need.total / 1e9:.2f} GB for {size} sequences at a time; what is free is not known here")
        return config
    room = free + need.weights + need.average  # which are there already
    say(f"memory: about {need.total / 1e9:.2f} of {room / 1e9:.2f} GB, {size} sequences at a time")
    if need.total > room:
        less = (other for other in divisors(rows) if other < size)
        fits = next((other for other in less if needed(trainer, config, other).total <= SAFE * room), None)
        advice = f"set --train.micro-batch-size {fits}, or auto" if fits else ADVICE
        say(f"memory: this may not fit; {advice}")
    return config


def needed(trainer: Trainer, config: RunConfig, size: int) -> Memory:
    """Bytes that this run needs with so many sequences at a time: `training_memory`, of the parameters that learn."""
    parts = list(trainer.model.parameters())
    share = sum(p.numel() for p in parts if p.requires_grad) / sum(p.numel() for p in parts)
    shape = config.model.model_copy(update={"max_seq_len": config.finetune.seq_len or config.model.max_seq_len})
    memory = training_memory(
        shape,
        size,
        trainer.runtime,
        optimizer=config.optimizer.kind,
        ema=trainer.average is not None,
        accumulates=size < _rows(trainer),
        shards=trainer.runtime.ranks.world if config.parallel.kind == "fsdp" else 1,
        checkpointing=config.parallel.activation_checkpointing,
    )
    return replace(memory, gradients=int(memory.gradients * share), optimizer=int(memory.optimizer * share))


def find(trainer: Trainer, config: RunConfig, free: int | None) -> int:
    """The micro-batch size to take, a divisor of the batch: see the module."""
    device, sizes = trainer.runtime.device, divisors(_rows(trainer))

    def fits(size: int, share: float) -> bool:
        need = needed(trainer, config, size)
        return free is None or need.total - need.weights - need.average <= share * free

    if trainer.runtime.ranks.world > 1:
        return next((size for size in sizes if fits(size, SAFE)), 1)
    if device.type == "cpu":
        return fastest([size for size in reversed(sizes) if fits(size, SAFE)], lambda size: try_pass(trainer, size))
    likely = [size for size in sizes if fits(size, HOPEFUL)]
    state = needed(trainer, config, 1).optimizer  # comes with the first step
    return next((size for size in likely if try_pass(trainer, size, state) is not None), 1)


def fastest(sizes: list[int], attempt: Callable[[int], float | None], limit: float = SECONDS) -> int:
    """The size with the most sequences a second, from small to large; ends when two in a row are no better.

    Args:
        sizes: rising.
        attempt: a size -> seconds of a pass, None if memory does not suffice.
        limit: seconds after which no further size is tried.
    """
    best, speed, worse, start = 1, 0.0, 0, time.perf_counter()
    for size in sizes:
        seconds = attempt(size)
        if seconds is None or worse == 2 or time.perf_counter() - start > limit:
            break
        worse += 1
        if size / seconds > 1.02 * speed:  # less is chance
            best, speed, worse = size, size / seconds, 0
    return best


def try_pass(trainer: Trainer, size: int, reserve: int = 0) -> float | None:
    """Seconds of a forward and backward pass of the run's first sequences, or None where memory does not suffice.

    Compiled models are tried as they are uncompiled, since every size would be compiled anew.

    Args:
        trainer: its model's gradients are let go.
        size: sequences.
        reserve: bytes of the device to hold meanwhile.
    """
    runtime = trainer.runtime
    model = trainer.model if runtime.compile else trainer.forward
    inputs, targets = (side[:size] for side in trainer.batches.batch(0))
    trainer.model.train()
    seconds = []
    try:
        held = torch.empty(reserve, dtype=torch.uint8, device=runtime.device)
        for _ in range(3):  # the first warms up
            runtime.synchronise()
            start = time.perf_counter()
            accumulate(model, [(inputs, targets)], runtime=runtime)
            runtime.synchronise()
            seconds.append(time.perf_counter() - start)
        del held
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    for parameter in trainer.model.parameters():
        parameter.grad = None
    runtime.give_back()
    return min(seconds[1:]) if len(seconds) == 3 else None


def divisors(rows: int) -> list[int]:
    """divisors(12) -> [12, 6, 4, 3, 2, 1]."""
    return [size for size in range(rows, 0, -1) if rows % size == 0]


def _rows(trainer: Trainer) -> int:
    """Sequences of a step on one rank."""
    return trainer.config.batch_size // trainer.runtime.ranks.world


class MicroBatches(Hook):
    """Says so when memory ended and the micro-batch became smaller."""

    def __init__(self, say: Say):
        self.say = say

    def on_start(self, trainer: Trainer) -> None:
        """What it is at first."""
        self.size = trainer.state.micro_batch_size

    def on_step(self, trainer: Trainer) -> None:
        """Look whether it has changed; a rollback may also make it larger again."""
        if trainer.state.micro_batch_size not in (self.size, None):
            self.say(
                f"memory ended at step {trainer.state.step}: {trainer.state.micro_batch_size} sequences at a time from "
                f"here on; the batch is still {trainer.config.batch_size}"
            )
        self.size = trainer.state.micro_batch_size


@contextmanager
def memory_errors(trainer: Trainer) -> Iterator[None]:
    """What smaller micro-batches did not help against, as a RunError in one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        step = trainer.state.step
    else:
        return
    several = "; with several ranks lower train.micro_batch_size" if trainer.runtime.ranks.world > 1 else ""
    raise RunError(f"memory ended at step {step}; the last checkpoint is whole; {ADVICE}{several}")
