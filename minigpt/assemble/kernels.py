"""What a run computes with: precision, attention kernel, compilation; as asked, as it began, or by measurement."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from minigpt.config import RunConfig
from minigpt.runtime import Runtime, make_runtime
from minigpt.training.loop import BatchSource
from minigpt.training.schedule import Budget
from minigpt.tuning import Choice, choose


def pick_kernels(
    config: RunConfig, batches: BatchSource, before: Mapping[str, Any], console: Console
) -> tuple[RunConfig, Runtime]:
    """The config with what was found in place of auto, so that it repeats the run exactly, and the runtime for it.

    `before` is the state of the checkpoint to go on from, empty for a new run: what was found then is kept, since
    to resume exactly is to compute alike. Raises ConfigError for a device that is not here.
    """
    settings, shape = config.train, config.model
    precision = before.get("precision", "auto") if settings.precision == "auto" else settings.precision
    runtime = make_runtime(settings.device, precision)
    compiled = {"auto": before.get("compile"), "on": True, "off": False}[settings.compile]
    if "attention" in before and compiled is not None:
        choice = Choice(before["attention"] if shape.attention == "auto" else shape.attention, compiled)
    else:
        size = settings.micro_batch_size or settings.batch_size
        steps = Budget(settings, batches.steps_per_epoch, batches.tokens_per_step).total_steps
        passes = steps * settings.batch_size / size if steps else math.inf  # minutes alone: long enough to compile
        choice = choose(shape, runtime, settings.compile, size, passes, console.print)
    if choice.reason:
        console.print(choice.reason)
    compile = "on" if choice.compile else "off"
    train = settings.model_copy(update={"precision": runtime.precision, "compile": compile})
    model = shape.model_copy(update={"attention": choice.attention})
    return config.model_copy(update={"train": train, "model": model}), replace(runtime, compile=choice.compile)
