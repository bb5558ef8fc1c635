"""How fast this machine trains: some real steps of a few sizes, then seconds a step = a x layers + b x FLOPs.

`a` is what every layer costs however small it is (calls, kernel starts), `b` what its arithmetic costs. FLOPs are the
step's, Muon's orthogonalisation included: below some 500 tokens a step it takes as long as the model itself.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch

from minigpt.budget import rule
from minigpt.budget.rule import Size
from minigpt.config import RunConfig
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.runtime import Runtime
from minigpt.training import make_optimizer
from minigpt.training.step import accumulate, update


@dataclass(frozen=True)
class Speed:
    """The line, and by what factor the last size that was chosen and measured lies off it."""

    per_layer: float
    per_flop: float
    factor: float = 1.0

    def step(self, size: Size, seq_len: int, batch: int) -> float:
        """Seconds of an optimizer step of `batch` sequences of `seq_len` tokens."""
        return self.factor * (self.per_layer * size.layers + self.per_flop * size.step_flops(seq_len, batch))


def fit_speed(points: Sequence[tuple[int, float, float]]) -> Speed:
    """The line through (layers, FLOPs, seconds) of some steps, neither of its terms negative; errors are relative."""
    table = np.array(points, dtype=np.float64)
    both = table[:, :2] / table[:, 2:]
    for columns in ([0, 1], [1], [0]):  # both terms; where one would be negative, the other alone
        found = np.zeros(2)
        found[columns] = np.linalg.lstsq(both[:, columns], np.ones(len(points)), rcond=None)[0]
        if (found >= 0).all() and found.any():
            break
    return Speed(float(found[0]), float(found[1]))


PROBES = ((2, 64), (4, 128), (6, 256), (8, 512), (12, 768), (16, 1024))
"""(layers, width) that are timed, as many as the time allows, two at least; 8 sequences of 64 tokens a step."""


def measure_speed(
    configure: Callable[[Mapping[str, Any]], RunConfig], runtime: Runtime, vocab_size: int, limit: float
) -> Speed:
    """The line through some sizes, in about `limit` seconds. Raises ConfigError if none goes with the settings."""
    points: list[tuple[int, float, float]] = []
    problem, started = ConfigError("--budget: no size fits"), time.perf_counter()
    for layers, width in PROBES:
        try:
            config = configure(rule.shape(layers, width, 64, vocab_size) | {"train.batch_size": 8})
        except ConfigError as error:
            problem = error
            continue
        size, seq_len, batch = Size.of(config.model), config.model.max_seq_len, config.train.batch_size
        flops = size.step_flops(seq_len, batch)
        if len(points) > 1 and 4 * fit_speed(points).step(size, seq_len, batch) > limit - (
            time.perf_counter() - started
        ):
            break
        points.append((size.layers, float(flops), time_step(config, runtime, limit / 6)))
    if not points:
        raise problem
    return fit_speed(points)


def time_step(config: RunConfig, runtime: Runtime, limit: float) -> float:
    """Median seconds of an optimizer step on random ids, of 2 to 20 as `limit` seconds allow, after one to warm up."""
    model = GPT(config.model)
    model.use_attention("sdpa" if config.model.attention == "auto" else config.model.attention)
    forward = runtime.prepare(model)
    optimizer = make_optimizer(model, config.optimizer, runtime.precision)
    batch, vocabulary = config.train.batch_size, config.model.vocab_size or 1
    micro_size = config.train.micro_batch_size
    size = min(micro_size, batch) if isinstance(micro_size, int) else batch
    ids = torch.randint(vocabulary, (batch, config.model.max_seq_len + 1), generator=torch.Generator().manual_seed(0))
    micro = list(zip(ids[:, :-1].split(size), ids[:, 1:].split(size), strict=True))
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < limit and len(seconds) < 21):
        runtime.synchronise()
        started = time.perf_counter()
        accumulate(forward, micro, runtime=runtime)
        update(forward, optimizer, runtime=runtime)
        runtime.synchronise()
        seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
