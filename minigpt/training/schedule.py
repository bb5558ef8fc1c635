"""Compute schedules of the learning rate and weight decay, and a run's budget, as pure functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from minigpt.config import ScheduleConfig, TrainConfig


def constant(progress: float, config: ScheduleConfig) -> float:
    """The rate stays at its peak."""
    return 1.0


def linear(progress: float, config: ScheduleConfig) -> float:
    """The rate falls on a straight line to its floor."""
    return 1.0 - (1.0 - config.min_lr_ratio) * progress


def cosine(progress: float, config: ScheduleConfig) -> float:
    """The rate falls to its floor along half a cosine (Loshchilov and Hutter, 2017)."""
    floor = config.min_lr_ratio
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def trapezoidal(progress: float, config: ScheduleConfig) -> float:
    """The rate stays at its peak until the last `decay_fraction`, then falls on a straight line (stable, decay)."""
    into_decay = (progress - (1.0 - config.decay_fraction)) / config.decay_fraction
    return 1.0 - (1.0 - config.min_lr_ratio) * max(0.0, into_decay)


SCHEDULES: dict[str, Callable[[float, ScheduleConfig], float]] = {
    "constant": constant,
    "linear": linear,
    "cosine": cosine,
    "trapezoidal": trapezoidal,
    "cosine+plateau": cosine,
}
"""Name to (progress 0 to 1, config) -> the rate as a share of its peak. To add a schedule, write a function, add a row
here, and add its name to `config.tree.ScheduleConfig.kind`."""


def lr_factor(step: int, progress: float, config: ScheduleConfig, after_warmup: bool = True) -> float:
    """The rate at a step as a share of its peak.

    Args:
        step: steps done; over the first `warmup_steps` the rate rises linearly, and is above 0 in the first step.
        progress: share of the budget used up, 0 to 1 (above 1 the rate stays at the floor).
        config: kind, floor (`min_lr_ratio`) and, for trapezoidal (warm-up, stable, decay), `decay_fraction`.
        after_warmup: the schedule begins where warm-up ends, so that the rate does not jump there. False: it begins
            at step 0, as in older versions; resumed old runs use this.

    With warmup_steps=2, cosine to 0 over 10 steps: 0.5, 1.0, 1.0, 0.96, 0.85, ... 0.04.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if after_warmup and progress < 1:
        start = progress * (config.warmup_steps / max(step, 1))  # progress at the end of warm-up
        progress = (progress - start) / (1 - start)
    return SCHEDULES[config.kind](min(progress, 1.0), config)


DECAYS: dict[str, Callable[[float, float], float]] = {
    "constant": lambda rate, floor: 1.0,
    "follow": lambda rate, floor: rate,
    "opposite": lambda rate, floor: min(1.0, 1.0 + floor - rate),
}
"""Name to (rate, floor) -> the weight decay as a share of the setting. Rate and floor (the rate at the schedule's end)
are shares of the peak. To add one, add a row here, and its name to `config.tree.ScheduleConfig.weight_decay`."""


def decay_factor(rate: float, config: ScheduleConfig) -> float:
    """The weight decay as a share of `optimizer.weight_decay`; `rate` is a share of the peak rate.

    A step shrinks a weight by rate x decay. With `constant` this falls with the rate, with `follow` with its square.
    With `opposite` (rate and decay in opposite phase: arXiv 2606.03938) and a floor of 0.1, the decay is 0.1 at the
    peak, 0.55 where the rate is 0.55, 1 at the floor, and at most 1 in the warm-up. A constant rate is at its floor
    from the start.
    """
    return DECAYS[config.weight_decay](rate, SCHEDULES[config.kind](1.0, config))


def context_parts(progress: float, config: ScheduleConfig) -> int:
    """How many parts a window is split into: 4, then 2, each for half of `context_warmup`, then 1."""
    if progress >= config.context_warmup:
        return 1
    return 2 if progress >= config.context_warmup / 2 else 4


def whole_epochs(step: int, steps_per_epoch: float) -> int:
    """How many epochs are complete after `step` steps.

    whole_epochs(35, 7 / 3) -> 15, although 35 / (7 / 3) is 14.999999999999998.
    """
    return int(step / steps_per_epoch + 1e-9)


@dataclass(frozen=True)
class Budget:
    """The length of a run: it ends at the first limit that it reaches.

    Args:
        config: max_steps, max_epochs, max_tokens, max_minutes.
        steps_per_epoch: optimizer steps per epoch; may be fractional.
        tokens_per_step: tokens per optimizer step.
    """

    config: TrainConfig
    steps_per_epoch: float
    tokens_per_step: int

    @property
    def total_steps(self) -> int | None:
        """Steps of the run, None if only the clock limits it."""
        limits = []
        if self.config.max_steps:
            limits.append(self.config.max_steps)
        if self.config.max_epochs:
            limits.append(math.ceil(self.config.max_epochs * self.steps_per_epoch - 1e-9))
        if self.config.max_tokens:
            limits.append(math.ceil(self.config.max_tokens / self.tokens_per_step))
        return max(1, min(limits)) if limits else None

    def progress(self, step: int, seconds: float) -> float:
        """Share used up after `step` steps and `seconds`; 1 or more ends the run."""
        used = step / self.total_steps if self.total_steps else 0.0
        if self.config.max_minutes:
            used = max(used, seconds / (60 * self.config.max_minutes))
        return used
