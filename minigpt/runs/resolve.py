"""Resolve a config once, before anything is built: fill in what follows from the data, this machine, or a checkpoint.

Choices made by measuring (precision, attention kernel, compilation, micro-batch) are kept when a run continues from a
checkpoint, since an exact resume must compute in the same way.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from rich.console import Console

from minigpt.config import ModelConfig, RunConfig
from minigpt.console import counted, printer
from minigpt.data.clean import clean_text
from minigpt.data.counts import used_ids
from minigpt.data.prepare import Prepared
from minigpt.errors import ConfigError, TokenizerError
from minigpt.model import GPT
from minigpt.model.inputs import take_masks
from minigpt.model.learner import Learner
from minigpt.model.shared_row import SharedRow
from minigpt.runs.feeds import Feed
from minigpt.runs.task import FromScratch, Task
from minigpt.runtime.autotune import Choice, choose
from minigpt.runtime.device import Runtime, make_runtime
from minigpt.runtime.memory import too_large
from minigpt.runtime.memory_estimate import least_memory
from minigpt.runtime.placement import Placement
from minigpt.runtime.precision import self_test, use_fp8
from minigpt.tokenizers import Tokenizer
from minigpt.training import Budget
from minigpt.training.loop import BatchSource
from minigpt.training.memory import UnbuiltRun, choose_micro_batch, to_move
from minigpt.training.objective import MaskedInputs, Objective
from minigpt.weights.checkpoint_state import CheckpointState

LEAST_UNUSED = 4096
"""With fewer ids that a text does not have, sharing a row would gain little."""


@dataclass(frozen=True)
class Resolved:
    """The settings that a run computes with.

    Attributes:
        config: repeats the run exactly; nothing in it is open or changes later.
        runtime: device, precision, compilation, ranks.
        placement: where the model's tensors are.
        shared: the ids that share a row, if any do.
    """

    config: RunConfig
    runtime: Runtime
    placement: Placement
    shared: SharedRow | None = None


def resolve(
    config: RunConfig,
    tokenizer: Tokenizer,
    feed: Feed,
    task: Task,
    placement: Placement,
    before: CheckpointState,
    console: Console,
) -> Resolved:
    """Decide the vocabulary's size, precision, kernels, compilation and micro-batch of a run.

    Args:
        config: the config from recipe, flags and data.
        before: state of the checkpoint to continue from; an empty one for a new run.
        console: prints what was measured.

    Raises:
        ConfigError: settings that do not fit the tokenizer or this machine.
    """
    config = resolve_vocabulary(config, tokenizer)
    check_sample_prompt(config, tokenizer)
    _refuse_what_never_fits(config, placement)
    alone = placement.shards == 1 and isinstance(task, FromScratch)
    shared = shared_row(config, feed.text) if feed.text and alone else None
    picked, runtime = pick_kernels(as_computed(config, shared), feed.batches, before, console, placement)
    config = picked.changed(model={"vocab_size": config.model.vocab_size})
    shared = shared and shared.to(runtime.device)

    def make() -> Learner:
        model, stepped, _ = make_learner(config, replace(runtime, compile=False), placement, task, shared)
        if runtime.precision == "bf16-pure":  # as the run's weights after its optimizer is made
            model.to(torch.bfloat16)
        return stepped

    moved = to_move(task.others, runtime.device)
    run = UnbuiltRun(config, runtime, feed.batches, task.share(config), placement.shards, make, moved)
    size = choose_micro_batch(run, before.micro_batch_size, printer(console))
    return Resolved(config.changed(train={"micro_batch_size": size}), runtime, placement, shared)


def make_learner(
    config: RunConfig, runtime: Runtime, placement: Placement, task: Task, shared: SharedRow | None = None
) -> tuple[GPT, Learner, Learner]:
    """Make the model with its initial weights. Returns (model, what a step calls, what an evaluation calls)."""
    model = task.model(config)
    model.shared = shared
    model.use_attention(config.model.attention)
    if runtime.precision == "fp8":
        use_fp8(model)
    if config.train.masked_inputs:
        take_masks(model, config.model)
    model, stepped = placement.place(model, runtime)
    evaluated = placement.evaluated(model, stepped)
    loss = task.objective(runtime)
    if config.train.masked_inputs:
        loss = MaskedInputs(config.train.masked_inputs, config.train.masked_weight)  # the only objective
    if loss:
        stepped = Objective(cast(GPT, stepped), loss)  # a sharded model has no objective
        evaluated = Objective(model, loss) if task.evaluate_objective else evaluated
    return model, stepped, evaluated


def shared_row(config: RunConfig, text: Prepared) -> SharedRow | None:
    """Which ids share a row, since the training text does not have them; None if none do (see `train.share_unused`)."""
    size = cast(int, config.model.vocab_size)
    if not config.train.share_unused or config.train.label_smoothing or size < LEAST_UNUSED:
        return None
    used = used_ids(text.splits["train"].tokens, size, size - LEAST_UNUSED)
    return None if used is None else SharedRow.of(used)


def as_computed(config: RunConfig, shared: SharedRow | None) -> RunConfig:
    """The config with the number of logits that a step computes as its vocabulary: it costs the same."""
    return config.changed(model={"vocab_size": shared.count}) if shared else config


def _refuse_what_never_fits(config: RunConfig, placement: Placement) -> None:
    """Raise ConfigError, before anything is built, for a model or batch that is larger than this machine's memory."""
    weights, rows = least_memory(config.model, placement.rows(config.train))
    ids = 16 * config.train.batch_size * config.model.max_seq_len
    problems = [
        (too_large(weights // placement.shards, "the weights"), "lower model.embed_dim or another size"),
        (too_large(rows, "a batch of this size"), "set train.micro_batch_size or lower train.batch_size"),
        (too_large(ids, "a batch of this size"), "lower train.batch_size"),
    ]
    if found := next((f"{problem}; {fix}" for problem, fix in problems if problem), None):
        raise ConfigError(found)


def resolve_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Set model.vocab_size from the tokenizer, and its kind in place of auto.

    Raises ConfigError if the recipe has another vocab_size.
    """
    asked = config.model.vocab_size
    if asked is not None and asked != tokenizer.vocab_size:
        raise ConfigError(f"model.vocab_size: {asked} is not the tokenizer's {tokenizer.vocab_size}; leave it out")
    kind = tokenizer.kind if config.tokenizer.kind == "auto" and not config.tokenizer.path else config.tokenizer.kind
    return config.changed(model={"vocab_size": tokenizer.vocab_size}, tokenizer={"kind": kind})


def with_clean_texts(config: RunConfig) -> RunConfig:
    """The config with its sample prompt and stops cleaned as its text is, so that the model knows their letters."""

    def clean(text: str) -> str:
        return clean_text(text, config.data.clean)

    cleaned = config.changed(train={"sample_prompt": clean(config.train.sample_prompt)})
    return cleaned.model_copy(update={"generation": config.generation.cleaned(clean)})


def check_sample_prompt(config: RunConfig, tokenizer: Tokenizer) -> None:
    """Raise ConfigError for a sample prompt that the model cannot read."""
    settings, limit = config.train, config.model.max_seq_len
    if not settings.sample_every:
        return
    other = "give another, or --train.sample-every 0"
    try:
        count = len(tokenizer.encode(settings.sample_prompt))
    except TokenizerError as error:
        raise ConfigError(f"train.sample_prompt: {str(error).rpartition('; ')[0]}; {other}") from None
    if not 0 < count <= limit:
        raise ConfigError(
            f"train.sample_prompt: has {counted(count, 'token')}, and the model reads 1 to {limit}; {other}"
        )


def pick_kernels(
    config: RunConfig, batches: BatchSource, before: CheckpointState, console: Console, placement: Placement
) -> tuple[RunConfig, Runtime]:
    """The config with the choices instead of auto, so that it repeats the run exactly, and the runtime for it.

    `before` is the state of the checkpoint to continue from, empty for a new run. Choices of the checkpoint are kept,
    since an exact resume must compute in the same way. Rank 0 chooses for all. Raises ConfigError for a missing device.
    """
    settings, shape, ranks = config.train, config.model, placement.ranks
    device = str(ranks.device or settings.device)
    if config.parallel.kind == "fsdp" and settings.precision in ("bf16-pure", "fp8"):
        raise ConfigError(f"train.precision: {settings.precision} does not go with parallel.kind fsdp; use bf16")

    def find() -> tuple[str, Choice]:
        precision = before.precision or "auto" if settings.precision == "auto" else settings.precision
        runtime = make_runtime(device, precision)
        compiled = {"auto": before.compile, "on": True, "off": False}[settings.compile]
        if before.attention and compiled is not None:
            attention = before.attention if shape.attention == "auto" else shape.attention
            return runtime.precision, Choice(attention, compiled)
        size = placement.rows(settings)
        steps = Budget(settings, batches.steps_per_epoch, batches.tokens_per_step).total_steps
        share = settings.batch_size / ranks.world
        # if only the minutes are limited, the run is long enough to compile
        passes = steps * settings.passes * share / size if steps else math.inf
        choice = choose(shape, runtime, settings.compile, size, passes, console.print)
        kernel = shape.model_copy(update={"attention": choice.attention})
        return runtime.precision if before.precision else _tried(kernel, runtime, console), choice

    precision, choice = ranks.broadcast(find)
    runtime = make_runtime(device, precision)
    if shape.attention == "fused" and (choice.compile or (runtime.device.type, precision) != ("cpu", "fp32")):
        console.print("model.attention: fused is for a CPU in fp32, not compiled, so torch computes it: no effect")
    if choice.reason:
        console.print(choice.reason)
    train = {"precision": runtime.precision, "compile": "on" if choice.compile else "off"}
    config = config.changed(train=train, model={"attention": choice.attention})
    return config, replace(runtime, compile=choice.compile, ranks=ranks)


def _tried(shape: ModelConfig, runtime: Runtime, console: Console) -> str:
    """The runtime's precision if it is exact enough here, else fp32, with a line that says why."""
    if runtime.precision == "fp32":
        return "fp32"
    verdict = self_test(shape, runtime)
    console.print(f"{verdict}{'' if verdict.ok else ': too much, so this run is in fp32'}", highlight=False)
    return runtime.precision if verdict.ok else "fp32"
