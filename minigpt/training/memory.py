"""Check that the micro-batch size (sequences per forward pass) fits in memory, and find the best size for `auto`.

Notable: on a GPU a larger size is faster, up to the memory's limit. On a CPU a size that fits in the caches can be
faster, so the speed is measured there. Several ranks must agree on a size, so they use only the estimate.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from minigpt.config import RunConfig
from minigpt.console import counted
from minigpt.errors import RunError
from minigpt.model.learner import Learner
from minigpt.runtime.device import Runtime, out_of_memory
from minigpt.runtime.memory import free_memory
from minigpt.runtime.memory_estimate import Memory, training_memory
from minigpt.training.loop import BatchSource, Hook, Trainer
from minigpt.training.step import Batch, accumulate

SAFE = 0.9
"""An estimate may use this share of the free memory; estimates have been within a tenth of measurements."""
KEPT = 150_000_000
"""Bytes of freed memory that glibc's allocator keeps (measured on a CPU: 136 to 165 MB)."""
HOPEFUL = 1.2
"""With CUDA, sizes whose estimate is up to this share of the free memory are tried, since a try is quick there."""
SECONDS = 10.0
"""After this long, no further size is tried on a CPU."""
ADVICE = "lower model.max_seq_len or the model's size, or set --parallel.activation-checkpointing true"
Say = Callable[[str], object]


@dataclass(frozen=True)
class UnbuiltRun:
    """A run that is not built yet: all that its memory and speed depend on.

    Attributes:
        config: the config, with kernels resolved; micro_batch_size may be auto.
        runtime: device, precision, ranks.
        batches: training data.
        share: share of the parameters that are trained; small for an adapter.
        shards: number of ranks that the weights are divided among.
        make: makes a temporary model for training steps, not compiled, on the device.
        others: bytes of other models, such as teachers, that will be moved to the device.
    """

    config: RunConfig
    runtime: Runtime
    batches: BatchSource
    share: float
    shards: int
    make: Callable[[], Learner]
    others: int = 0

    @property
    def rows(self) -> int:
        """Sequences of a step on one rank."""
        return self.config.train.batch_size // self.runtime.ranks.world

    def needed(self, size: int) -> Memory:
        """Bytes needed with `size` sequences at a time: `training_memory`, scaled to the trained parameters."""
        config, rows = self.config, 2 if self.config.finetune.dpo_beta else 1  # a pair is two rows
        shape = config.model.model_copy(update={"max_seq_len": config.seq_len})
        memory = training_memory(
            shape,
            size * rows * config.train.passes,
            self.runtime,
            optimizer=config.optimizer.kind,
            ema=bool(config.train.average),
            accumulates=size < self.rows,
            shards=self.shards,
            checkpointing=config.parallel.activation_checkpointing,
        )
        gradients, optimizer = int(memory.gradients * self.share), int(memory.optimizer * self.share)
        return replace(memory, weights=memory.weights + self.others, gradients=gradients, optimizer=optimizer)


def to_move(models: Iterable[nn.Module], device: torch.device) -> int:
    """Bytes of the models' weights that are not on the device yet; those that are count as memory that is not free."""
    return sum(p.nbytes for model in models for p in model.parameters() if p.device.type != device.type)


def choose_micro_batch(run: UnbuiltRun, found: int | None, say: Say) -> int | None:
    """Say how much memory the run needs and how much is free; returns micro_batch_size, with a number for auto.

    Args:
        run: the run that will be built.
        found: for a resumed run, the size that was found when it began.
        say: gets one line, or two if the run may not fit.
    """
    rows, ranks, asked = run.rows, run.runtime.ranks, run.config.train.micro_batch_size
    free = free_memory(run.runtime.device)
    if run.runtime.device.type == "cpu" and free is not None:
        free = max(0, free // ranks.here - KEPT)
    if ranks.world > 1 and free is not None:
        free = int(-ranks.largest(-float(free)))  # the least of all
    if asked == "auto":
        with run.runtime.own_draws():
            asked = found or find(run, free)
    size = min(asked or run.config.train.batch_size, rows)
    need, many = run.needed(size), counted(size, "sequence")
    if free is None:
        say(f"memory: about {need.total / 1e9:.2f} GB for {many} at a time; free memory is unknown here")
        return asked
    say(f"memory: about {need.total / 1e9:.2f} of {free / 1e9:.2f} GB, {many} at a time")
    if need.total > free:
        less = (other for other in divisors(rows) if other < size)
        fits = next((other for other in less if run.needed(other).total <= SAFE * free), None)
        advice = f"set --train.micro-batch-size {fits}, or auto" if fits else ADVICE
        say(f"memory: this may not fit; {advice}")
    return asked


def find(run: UnbuiltRun, free: int | None) -> int:
    """The micro-batch size to use, a divisor of the batch; see the module's docstring."""
    device, sizes = run.runtime.device, divisors(run.rows)

    def fits(size: int, share: float) -> bool:
        return free is None or run.needed(size).total <= share * free

    if run.runtime.ranks.world > 1:
        return next((size for size in sizes if fits(size, SAFE)), 1)
    learner, batch = run.make(), run.batches.batch(0)
    if device.type == "cpu":
        small = [size for size in reversed(sizes) if fits(size, SAFE)]
        return fastest(small, lambda size: try_pass(learner, batch, size, run.runtime))
    share = HOPEFUL if device.type == "cuda" else SAFE  # mps would not refuse memory, but swap
    likely = [size for size in sizes if fits(size, share)]
    state = run.needed(1).optimizer  # allocated in the first step
    return next((size for size in likely if try_pass(learner, batch, size, run.runtime, state) is not None), 1)


def fastest(sizes: list[int], attempt: Callable[[int], float | None], limit: float = SECONDS) -> int:
    """The size with the most sequences per second. Tries sizes in order, and ends when two in a row are not better.

    Args:
        sizes: the sizes to try, from small to large.
        attempt: a size -> seconds of a pass, None if memory runs out.
        limit: seconds after which no further size is tried.
    """
    best, speed, worse, start = 1, 0.0, 0, time.perf_counter()
    for size in sizes:
        seconds = attempt(size)
        if seconds is None or worse == 2 or time.perf_counter() - start > limit:
            break
        worse += 1
        if size / seconds > 1.02 * speed:  # a smaller gain may be noise
            best, speed, worse = size, size / seconds, 0
    return best


def try_pass(learner: Learner, batch: Batch, size: int, runtime: Runtime, reserve: int = 0) -> float | None:
    """Seconds of a forward and backward pass of the batch's first `size` sequences; None if memory runs out.

    Args:
        learner: the learner, in training mode; its gradients are deleted.
        batch: inputs and targets.
        size: number of sequences.
        runtime: device and precision.
        reserve: bytes to allocate on the device during the passes.
    """
    inputs, targets = (side[:size] for side in batch)
    seconds = []
    try:
        held = torch.empty(reserve, dtype=torch.uint8, device=runtime.device)
        for _ in range(3):  # the first warms up
            runtime.synchronise()
            start = time.perf_counter()
            accumulate(learner, [(inputs, targets)], runtime=runtime)
            runtime.synchronise()
            seconds.append(time.perf_counter() - start)
        del held
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
    for parameter in learner.parameters():
        parameter.grad = None
    runtime.empty_cache()
    return min(seconds[1:]) if len(seconds) == 3 else None


def divisors(rows: int) -> list[int]:
    """divisors(12) -> [12, 6, 4, 3, 2, 1]."""
    return [size for size in range(rows, 0, -1) if rows % size == 0]


class MicroBatches(Hook):
    """Prints a line when memory ran out and the micro-batch became smaller."""

    def __init__(self, say: Say):
        self.say = say

    def on_start(self, trainer: Trainer) -> None:
        """Remember the size at the start."""
        self.size = trainer.state.micro_batch_size

    def on_step(self, trainer: Trainer) -> None:
        """Check whether the size is smaller; a rollback can also make it larger again."""
        size = trainer.state.micro_batch_size
        if size and size < (self.size or trainer.config.batch_size):
            self.say(
                f"memory ran out at step {trainer.state.step}: {counted(size, 'sequence')} at a time "
                f"from now on; the batch is still {trainer.config.batch_size}"
            )
        self.size = size


@contextmanager
def memory_errors(trainer: Trainer) -> Iterator[None]:
    """Turn an out-of-memory error that smaller micro-batches could not prevent into a RunError of one line."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        step = trainer.state.step
    else:
        return
    several = "; with several ranks lower train.micro_batch_size" if trainer.runtime.ranks.world > 1 else ""
    raise RunError(f"memory ran out at step {step}; the last checkpoint is whole; {ADVICE}{several}")
