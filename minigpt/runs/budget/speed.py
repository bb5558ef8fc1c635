"""Measure how fast this machine trains: fit seconds per step = a x layers + b x FLOPs + c x elements to real steps.

`a` is the cost of every layer, however small (calls, kernel starts); `b` is the cost of arithmetic; `c` is the cost of
reading and writing in addition to it, for layers x tokens x width elements. FLOPs are those of the step, including
Muon's orthogonalisation: below about 500 tokens per step it takes as long as the model itself. Without `c`, large
batches of a narrow model seemed twice as fast as they are (docs/LOG.md).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import combinations, product
from statistics import median
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from minigpt.config import RunConfig
from minigpt.errors import ConfigError
from minigpt.measured import keep, recall
from minigpt.model import GPT
from minigpt.runs.budget import rule
from minigpt.runs.budget.rule import Size
from minigpt.runtime.device import Runtime, measured_key
from minigpt.training import accumulate, make_optimizer, update

Configure = Callable[[Mapping[str, Any]], RunConfig]
"""Turns settings by dotted name into the config with them; a setting that the person gave stays."""


@dataclass(frozen=True)
class Speed:
    """The three costs, and the factor between the measured and the predicted time of the size chosen last."""

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
    """The costs, none negative, that fit the (amounts, seconds) of some steps with the least relative error."""
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
"""(layers, width) to time, as many as the time allows, in steps of 8 and of 64 sequences of 64 tokens."""
TRUSTED = 1.5
"""Measure remembered costs again if they are wrong by more than this factor."""


def known_speed(configure: Configure, runtime: Runtime, vocab_size: int, limit: float, again: bool = False) -> Speed:
    """The costs that were measured here before; if there are none, or with `again`, they are measured now, in about
    `limit` seconds.

    Raises ConfigError if no size fits the settings.
    """
    probes = _probes(configure, vocab_size)
    first = probes[0]
    key = measured_key(runtime, "prices", first.model.model_dump(), first.optimizer.model_dump(), first.train.rows)
    with suppress(ValidationError):
        if not again:
            return TypeAdapter(Speed).validate_python(recall(key))
    speed = _measure(probes, runtime, limit)
    keep(key, asdict(speed))
    return speed


def _probes(configure: Configure, vocab_size: int) -> list[RunConfig]:
    """The sizes that fit the settings. Raises ConfigError if none does."""
    found, problem = [], ConfigError("--budget: no size fits")
    for (layers, width), batch in product(PROBES, (8, 64)):
        try:
            found.append(configure(rule.shape(layers, width, 64, vocab_size) | {"train.batch_size": batch}))
        except ConfigError as error:
            problem = error
    if not found:
        raise problem
    return found


def _measure(probes: Sequence[RunConfig], runtime: Runtime, limit: float) -> Speed:
    """The costs from at least three probes, in about `limit` seconds."""
    points: list[tuple[tuple[float, float, float], float]] = []
    started = time.perf_counter()
    for config in probes:
        size, seq_len, rows = Size.of(config.model), config.model.max_seq_len, config.train.batch_size
        left = limit - (time.perf_counter() - started)
        if len(points) > 2 and 4 * fit_speed(points).step(size, seq_len, rows) > left:
            break
        points.append((amounts(size, seq_len, rows), time_step(config, runtime, limit / 6)))
    return fit_speed(points)


def time_step(config: RunConfig, runtime: Runtime, limit: float) -> float:
    """Median seconds of an optimizer step on random ids: 2 to 20 steps, as `limit` seconds allow, after one warm-up
    step.
    """
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
    with runtime.own_draws(), runtime.products():
        while len(seconds) < 3 or (sum(seconds) < limit and len(seconds) < 21):
            runtime.synchronise()
            started = time.perf_counter()
            accumulate(forward, micro, runtime=runtime)
            update(forward, optimizer, runtime=runtime)
            runtime.synchronise()
            seconds.append(time.perf_counter() - started)
    return median(seconds[1:])
