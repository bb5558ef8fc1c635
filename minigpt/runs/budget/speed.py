"""How fast this machine trains: some real steps, then seconds a step = a x layers + b x FLOPs + c x elements.

`a` is what every layer costs however small it is (calls, kernel starts), `b` what its arithmetic costs, `c` what is
read and written beside it, for layers x tokens x width elements. FLOPs are the step's, Muon's orthogonalisation
included: below some 500 tokens a step it takes as long as the model itself. Without `c` a narrow model's large batches
seemed twice as fast as they are (docs/LOG.md).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median
from typing import Any

import numpy as np
import torch

from minigpt.config import RunConfig
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.runs.budget import rule
from minigpt.runs.budget.rule import Size
from minigpt.runtime.device import Runtime
from minigpt.training import accumulate, make_optimizer, update


@dataclass(frozen=True)
class Speed:
    """The three prices, and by what factor the last size that was chosen and measured lies off them."""

    per_layer: float
    per_flop: float
    per_element: float = 0.0
    factor: float = 1.0

    def step(self, size: Size, seq_len: int, batch: int) -> float:
        """Seconds of an optimizer step of `batch` sequences of `seq_len` tokens."""
        layers, flops, elements = amounts(size, seq_len, batch)
        return self.factor * (self.per_layer * layers + self.per_flop * flops + self.per_element * elements)


def amounts(size: Size, seq_len: int, batch: int) -> tuple[float, float, float]:
    """(layers, FLOPs, layers x tokens x width) of an optimizer step."""
    return size.layers, size.step_flops(seq_len, batch), size.layers * batch * seq_len * size.width


def fit_speed(points: Sequence[tuple[tuple[float, float, float], float]]) -> Speed:
    """The prices, none of them negative, that leave least of some steps' (amounts, seconds); errors are relative."""
    table = np.array([[amount / seconds for amount in of] for of, seconds in points], dtype=np.float64)
    scale = np.linalg.norm(table, axis=0)
    best, left = np.zeros(3), np.inf
    for columns in (list(some) for count in (1, 2, 3) for some in combinations(range(3), count)):
        found = np.zeros(3)
        found[columns] = np.linalg.lstsq((table / scale)[:, columns], np.ones(len(points)), rcond=None)[0]
        off = float(np.square(table / scale @ found - 1).sum())
        if (found >= 0).all() and off < left:
            best, left = found, off
    return Speed(*(float(price) for price in best / scale))


PROBES = ((2, 64), (4, 128), (6, 256), (8, 512), (12, 768), (16, 1024))
"""(layers, width) that are timed, as many as the time allows, in steps of 8 and of 64 sequences of 64 tokens."""


def measure_speed(
    configure: Callable[[Mapping[str, Any]], RunConfig], runtime: Runtime, vocab_size: int, limit: float
) -> Speed:
    """The prices by some sizes, in about `limit` seconds. Raises ConfigError if none goes with the settings."""
    points: list[tuple[tuple[float, float, float], float]] = []
    problem, started = ConfigError("--budget: no size fits"), time.perf_counter()
    for (layers, width), batch in product(PROBES, (8, 64)):
        try:
            config = configure(rule.shape(layers, width, 64, vocab_size) | {"train.batch_size": batch})
        except ConfigError as error:
            problem = error
            continue
        size, seq_len, rows = Size.of(config.model), config.model.max_seq_len, config.train.batch_size
        left = limit - (time.perf_counter() - started)
        if len(points) > 2 and 4 * fit_speed(points).step(size, seq_len, rows) > left:
            break
        points.append((amounts(size, seq_len, rows), time_step(config, runtime, limit / 6)))
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
