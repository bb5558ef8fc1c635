"""Which attention kernel, and whether to compile: found by timing one block of the model here, and remembered.

A block's forward and backward pass takes milliseconds, so both kernels are timed before the first step of a run.
Compiling costs half a minute the first time, so it is tried only where it may save more than that; its result stands
in torch's own cache afterwards and is not wasted. What was found is kept in tuning.json in the cache directory, by
machine, torch, shape and batch. A run keeps its choice in its checkpoints: to resume exactly is to compute alike.
"""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from minigpt.config import ModelConfig
from minigpt.download import cache_root
from minigpt.jsonl import write_text
from minigpt.model.gpt import GPT
from minigpt.model.parts import ATTENTION
from minigpt.runtime import Runtime, machine_name

COLD, WARM, HOPED = 30.0, 5.0, 0.25
"""Seconds a first and a later compilation cost, and the share of a step that it may save (docs/LOG.md)."""
SCORES = 1 << 31
"""Most attention weights, of all layers together, that the reference kernel may keep for its backward pass."""


@dataclass(frozen=True)
class Choice:
    """What a run computes with, and why in one line."""

    attention: str
    compile: bool
    reason: str = ""


@dataclass
class Timings:
    """Seconds of one block, forward and backward, on one micro-batch."""

    eager: dict[str, float]
    compiled: float | None = None


def choose(
    shape: ModelConfig, runtime: Runtime, compile: str, batch: int, passes: float, say: Callable[[str], None]
) -> Choice:
    """Pick by measurement.

    Args:
        shape: the model; `attention` other than auto is kept.
        runtime: device and precision.
        compile: train.compile; auto decides by what it saves in this run (on CUDA it always pays).
        batch: sequences of a micro-batch.
        passes: micro-batches of the whole run.
        say: told when a compilation begins.
    """
    if runtime.device.type == "cuda":  # flash attention, and kernels that are compiled in seconds
        return Choice("sdpa" if shape.attention == "auto" else shape.attention, compile != "off")
    store, key = cache_root() / "tuning.json", _key(shape, runtime, batch)
    known = _read(store).get(key)
    timings = Timings(**known) if known else Timings(_time_kernels(shape, runtime, batch))
    attention = shape.attention if shape.attention != "auto" else min(timings.eager, key=timings.eager.__getitem__)
    eager = timings.eager.get(attention) or _time(shape, runtime, batch, attention)
    total = eager * shape.num_layers * passes
    on, tried = compile == "on", timings.compiled is not None
    if compile == "auto" and runtime.device.type == "cpu":
        if not tried and total * HOPED > COLD and runtime.can_compile():
            say("trying torch.compile: half a minute the first time")
            timings.compiled = _time(shape, runtime, batch, attention, compiled=True)
        if timings.compiled is not None:
            on = total * (1 - timings.compiled / eager) > (WARM if tried else 0.0)
    _write(store, key, timings)
    words = [f"{name} {1e3 * seconds:.0f} ms" for name, seconds in timings.eager.items()]
    words += [f"{attention} compiled {1e3 * timings.compiled:.0f} ms"] if timings.compiled is not None else []
    return Choice(attention, on, f"a block, forward and backward: {', '.join(words)}")


def _time_kernels(shape: ModelConfig, runtime: Runtime, batch: int) -> dict[str, float]:
    scores = batch * shape.num_heads * shape.max_seq_len**2 * shape.num_layers
    names = [name for name in ATTENTION if name != "reference" or scores <= SCORES]
    return {name: _time(shape, runtime, batch, name) for name in names}


def _time(shape: ModelConfig, runtime: Runtime, batch: int, attention: str, compiled: bool = False) -> float:
    """Fewest seconds of one block's forward and backward pass, after one to warm up: others may use the machine."""
    one = shape.model_copy(update={"num_layers": 1, "vocab_size": 64, "attention": attention})
    model = GPT(one).to(runtime.device).train()
    block: Callable[..., torch.Tensor] = model.blocks[0]
    if compiled:
        block = cast(nn.Module, torch.compile(model.blocks[0], dynamic=False))
    x = torch.randn(batch, shape.max_seq_len, shape.embed_dim, device=runtime.device, requires_grad=True)
    seconds = []
    for _ in range(6):
        runtime.synchronise()
        started = time.perf_counter()
        with runtime.autocast():
            out = block(x, model.rotary(0, shape.max_seq_len))
        out.sum().backward()
        runtime.synchronise()
        seconds.append(time.perf_counter() - started)
    return min(seconds[1:])


def _key(shape: ModelConfig, runtime: Runtime, batch: int) -> str:
    fields = shape.model_dump(exclude={"num_layers", "vocab_size", "attention", "tie_embeddings", "init_std"})
    parts = [machine_name(runtime.device), torch.__version__, torch.get_num_threads(), runtime.precision, batch, fields]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _read(store: Path) -> dict[str, Any]:
    try:
        return json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: measure again
        return {}


def _write(store: Path, key: str, timings: Timings) -> None:
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_text(store, json.dumps(_read(store) | {key: asdict(timings)}, indent=1) + "\n")
    except OSError as error:  # a read-only cache costs a second at each start, no more
        import warnings

        warnings.warn(f"timings are not remembered: {store}: {error.strerror}", stacklevel=2)
