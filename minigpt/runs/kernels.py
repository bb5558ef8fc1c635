"""What a run computes with: precision, attention kernel, compilation; as asked, as it began, or by measurement."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console

from minigpt.config import ModelConfig, RunConfig
from minigpt.errors import ConfigError
from minigpt.runs.ranks import share_of_batch
from minigpt.runtime.autotune import Choice, choose
from minigpt.runtime.device import Runtime, make_runtime
from minigpt.runtime.precision import self_test
from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training.loop import BatchSource
from minigpt.training.schedule import Budget


def pick_kernels(
    config: RunConfig, batches: BatchSource, before: Mapping[str, Any], console: Console, ranks: Ranks = ALONE
) -> tuple[RunConfig, Runtime]:
    """The config with what was found in place of auto, so that it repeats the run exactly, and the runtime for it.

    `before` is the state of the checkpoint to go on from, empty for a new run: what was found then is kept, since
    to resume exactly is to compute alike. Rank 0 finds it for all. Raises ConfigError for a device that is not here.
    """
    settings, shape = config.train, config.model
    device = str(ranks.device or settings.device)
    if config.parallel.kind == "fsdp" and settings.precision in ("bf16-pure", "fp8"):
        raise ConfigError(f"train.precision: {settings.precision} does not go with parallel.kind fsdp; use bf16")

    def find() -> tuple[str, Choice]:
        precision = before.get("precision", "auto") if settings.precision == "auto" else settings.precision
        runtime = make_runtime(device, precision)
        compiled = {"auto": before.get("compile"), "on": True, "off": False}[settings.compile]
        if "attention" in before and compiled is not None:
            attention = before["attention"] if shape.attention == "auto" else shape.attention
            return runtime.precision, Choice(attention, compiled)
        size = share_of_batch(config, ranks)
        steps = Budget(settings, batches.steps_per_epoch, batches.tokens_per_step).total_steps
        share = settings.batch_size / ranks.world
        passes = steps * share / size if steps else math.inf  # minutes alone: long enough to compile
        choice = choose(shape, runtime, settings.compile, size, passes, console.print)
        kernel = shape.model_copy(update={"attention": choice.attention})
        return runtime.precision if "precision" in before else _tried(kernel, runtime, console), choice

    precision, choice = ranks.share(find)
    runtime = make_runtime(device, precision)
    if choice.reason:
        console.print(choice.reason)
    compile = "on" if choice.compile else "off"
    train = settings.model_copy(update={"precision": runtime.precision, "compile": compile})
    model = shape.model_copy(update={"attention": choice.attention})
    return config.model_copy(update={"train": train, "model": model}), replace(
        runtime, compile=choice.compile, ranks=ranks
    )


def _tried(shape: ModelConfig, runtime: Runtime, console: Console) -> str:
    """The runtime's precision if it computes well enough here, else fp32, and a line that says why."""
    if runtime.precision == "fp32":
        return "fp32"
    verdict = self_test(shape, runtime)
    console.print(f"{verdict}{'' if verdict.ok else ': too much, so this run is in fp32'}", highlight=False)
    return runtime.precision if verdict.ok else "fp32"
