"""Build a run from its config and train it: the place where all parts meet."""

import io
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from rich.console import Console

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.console import progress_bars
from minigpt.data import Batches, Prepared, eval_batches
from minigpt.errors import ConfigError, DataError, RunError
from minigpt.files import read_lines, write_text
from minigpt.generation.text import generate_text
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token
from minigpt.runs.data import make_tokenizer, prepare_data
from minigpt.runs.kernels import pick_kernels
from minigpt.runs.load import check_vocabulary
from minigpt.runs.plan import Plan, default_name, make_receipt, plan_run, read_receipt, write_run_files
from minigpt.runs.ranks import connect, eval_size, joined, place, planned, saver_of, undivided
from minigpt.runtime.device import hardware
from minigpt.runtime.precision import use_fp8, with_masters
from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.tokenizers import Tokenizer
from minigpt.training import Hook, Trainer, TrainState, make_optimizer
from minigpt.training.hooks.epochs import epoch_table, render_epochs
from minigpt.training.hooks.guard import Guard
from minigpt.training.hooks.metrics import Metrics
from minigpt.training.hooks.samples import Samples
from minigpt.training.hooks.screen import Screen
from minigpt.training.hooks.signals import Signals
from minigpt.training.hooks.tracking import Tracking
from minigpt.training.loop import BatchSource
from minigpt.training.micro_batch import MicroBatches, fit, memory_errors
from minigpt.training.step import Batch


@dataclass(frozen=True)
class TrainedRun:
    """What `train` returns: where the run is, the model (best weights not loaded: the last), and the final state."""

    path: Path
    model: GPT
    tokenizer: Tokenizer
    config: RunConfig
    state: TrainState
    epochs: list[dict[str, float]]
    rank: int = 0  # of this process among those that trained it


@dataclass(frozen=True)
class Feed:
    """What a run learns from.

    batches: for training.
    validation: rows of a batch, how many (None: all), in runs of so many (`data.batches.spread`) -> those batches.
    bytes_per_token: source bytes of one validation target, for bits per byte; None if the loss is not of tokens.
    sha256: of each split, for the receipt.
    size: for the screen, "1,000 training tokens".
    """

    batches: BatchSource
    validation: Callable[[int, int | None, int], Iterable[Batch]]
    bytes_per_token: float | None
    sha256: Mapping[str, str]
    size: str


def _new_model(config: RunConfig) -> GPT:
    return GPT(config.model, seed=config.train.seed)


@dataclass(frozen=True)
class Kind:
    """What differs between kinds of training; as it stands, training from nothing.

    command: repeats the run.
    model: makes it of the config, with its first weights.
    trainer: `Trainer`, or one that saves something else.
    adjust: called with the trainer before it starts or resumes.
    state, receipt, files: to add to checkpoints, receipt and run directory.
    """

    command: str = "train"
    model: Callable[[RunConfig], GPT] = _new_model
    trainer: type[Trainer] = Trainer
    adjust: Callable[[Trainer], None] = lambda trainer: None
    state: Mapping[str, Any] = field(default_factory=dict)
    receipt: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)


FROM_NOTHING = Kind()


def train(
    config: RunConfig,
    data: str | None = None,
    name: str | None = None,
    resume: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
    kind: Kind = FROM_NOTHING,
) -> TrainedRun:
    """Train a GPT as the config says, or continue an unfinished run of the same name and settings.

    train(load_config("recipe.yaml"), data="my.txt")

    Args:
        config: from `load_config`.
        data: text to use in place of config.data.source.
        name: of the run (default: from config.logging.name, the recipe, or the data).
        resume: continue a run under changed settings (a longer budget); without it, only the same settings continue.
        recipe: path the config came from, for the default name.
        quiet: print nothing.
        kind: what differs, such as what to add to the receipt.

    Raises:
        UserError: see minigpt.errors; nothing is lost.
    """
    if given := [name for name in ("finetune", "lora") if getattr(config, name) != getattr(RunConfig(), name)]:
        raise ConfigError(
            [f"{name}: train starts from nothing; minigpt finetune takes these settings" for name in given]
        )
    if data is not None:
        config = config.model_copy(update={"data": config.data.model_copy(update={"source": data})})
    with joined(config, quiet) as (ranks, console):
        own = plan_run(config, name or config.logging.name, default_name(config, recipe), resume, teller(console))
        with planned(ranks, own) as plan:
            teller(console)(f"{plan.path}: reading {config.data.source}")
            tokenizer = ranks.share(lambda: _tokenizer(plan, config, console))
            config = resolve_vocabulary(config, tokenizer)
            check_vocabulary(tokenizer, config.model, plan.path)
            feed = ranks.in_turn(lambda: text_feed(config, tokenizer, console, config.model.max_seq_len))
            return execute(plan, config, tokenizer, feed, console, resume, kind, ranks)


def _tokenizer(plan: Plan, config: RunConfig, console: Console) -> Tokenizer:
    if plan.saved:
        return tokenizers.load(plan.path)
    with progress_bars(console) as report:
        return make_tokenizer(config, report)


def teller(console: Console) -> Callable[[str], object]:
    """Prints a message as it is, on one line where there is room."""
    return lambda text: console.print(text, markup=False, highlight=False)


def text_feed(
    config: RunConfig, tokenizer: Tokenizer, console: Console, seq_len: int, flag: str = "--model.max-seq-len"
) -> Feed:
    """Windows of seq_len tokens, which the flag sets, of the config's text. Raises DataError."""
    with progress_bars(console) as report:
        prepared = prepare_data(config, tokenizer, report)
    check_lengths(prepared, seq_len, flag)
    train, val = (prepared.splits[split].tokens for split in ("train", "val"))
    return Feed(
        Batches(train, config.train.batch_size, seq_len, config.train.seed),
        partial(eval_batches, val, seq_len, seq_len),
        bytes_per_token(val, prepared.meta["splits"]["val"]["bytes"], tokenizer),
        {name: split["sha256"] for name, split in prepared.meta["splits"].items()},
        f"{len(train):,} training tokens",
    )


def execute(
    plan: Plan,
    config: RunConfig,
    tokenizer: Tokenizer,
    feed: Feed,
    console: Console,
    resume: bool,
    kind: Kind = FROM_NOTHING,
    ranks: Ranks = ALONE,
) -> TrainedRun:
    """Start the run, or resume it where its last checkpoint is; write its directory. Raises as `train`."""
    saved = plan.saved
    if saved:
        step = saved.state["train"]["step"]
        console.print(f"{plan.path}: {'finished at' if plan.finished else 'goes on from'} step {step}")
        check_same_text(plan.path, feed.sha256)
    trainer, config = build(config, plan.path, tokenizer, feed, console, saved.state if saved else {}, kind, ranks)
    if saved:
        trainer.resume(saved)
        if not resume and plan.finished:
            trainer.state = TrainState(**saved.state["train"])
            console.print("nothing left to do; --resume with a larger budget goes on, another --name starts anew")
            return _finish(trainer, plan.path, tokenizer, config, console)
    if ranks.rank == 0:
        _write_files(plan.path, config, tokenizer, feed, kind, ranks)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = "" if learning == parameters else f", of which {learning:,} learn"
    console.print(f"{plan.path}: {parameters:,} parameters{share}, {tokenizer.vocab_size:,} {tokenizer.kind} ids, "
                  f"{feed.size}, {trainer.runtime}")  # fmt: skip
    with memory_errors(trainer), trainer.runtime.products():
        trainer.run()
    return _finish(trainer, plan.path, tokenizer, config, console)


def _write_files(path: Path, config: RunConfig, tokenizer: Tokenizer, feed: Feed, kind: Kind, ranks: Ranks) -> None:
    """What a run directory holds before the first step."""
    versions = {name: version(name) for name in ("minigpt", "torch", "numpy", "pydantic")}
    receipt = make_receipt(config, feed.sha256, hardware(), versions) | {"ranks": ranks.world, **kind.receipt}
    write_run_files(path, config, receipt, kind.command)
    tokenizer.save(path / "tokenizer.json")
    for name, text in kind.files.items():
        write_text(path / name, text)


def build(
    config: RunConfig,
    path: Path,
    tokenizer: Tokenizer,
    feed: Feed,
    console: Console,
    before: Mapping[str, Any] = MappingProxyType({}),
    kind: Kind = FROM_NOTHING,
    ranks: Ranks = ALONE,
) -> tuple[Trainer, RunConfig]:
    """The trainer with all its parts, writing below `path`, and the resolved config.

    `before` is the state of the checkpoint to go on from: what was found by measuring then (precision, kernel,
    compilation) is kept, since to resume exactly is to compute alike. Raises ConfigError, DataError.
    """
    settings, limit = config.train, config.model.max_seq_len
    if settings.sample_every and not 0 < len(tokenizer.encode(settings.sample_prompt)) <= limit:
        raise ConfigError(
            f"train.sample_prompt: {settings.sample_prompt!r} has no token, or more than the context's "
            f"{limit}; give another, or --train.sample-every 0"
        )
    config, runtime = pick_kernels(config, feed.batches, before, console, ranks)
    model = kind.model(config)
    model.use_attention(config.model.attention)
    if runtime.precision == "fp8":
        use_fp8(model)
    model, forward = place(model, config, runtime)

    def validation() -> Iterable[Batch]:
        size, count = eval_size(config, ranks, trainer.state.micro_batch_size)
        return feed.validation(size, count, config.train.rows // size)

    trainer = kind.trainer(
        model,
        with_masters(make_optimizer(model, config.optimizer, runtime.precision), model, runtime),
        feed.batches,
        validation,
        settings,
        config.schedule,
        runtime,
        config.optimizer.learning_rate,
        forward=forward,
    )
    kind.adjust(trainer)
    connect(trainer, config)
    config = fit(trainer, config, before, teller(console))
    trainer.hooks = _hooks(config, path, tokenizer, feed, console, kind, before, ranks)
    return trainer, config


def _hooks(
    config: RunConfig,
    path: Path,
    tokenizer: Tokenizer,
    feed: Feed,
    console: Console,
    kind: Kind,
    before: Mapping[str, Any],
    ranks: Ranks,
) -> list[Hook]:
    settings, shape = config.train, config.model

    def write_sample(trainer: Trainer) -> str | None:
        model = undivided(trainer.model, config, trainer.runtime.ranks)
        if trainer.runtime.ranks.rank:
            return None
        fields = config.generation.model_dump() | {"num_samples": 1}
        with trainer.runtime.autocast():
            return str(generate_text(model, settings.sample_prompt, tokenizer, **fields))

    screen = Screen(console)
    tracking = Tracking(config, path, teller(console))
    metrics = Metrics(
        path / "metrics.jsonl",
        config.logging.log_every,
        cache(lambda parts: flops_per_token(shape.model_copy(update={"max_seq_len": shape.max_seq_len // parts}))),
        feed.bytes_per_token,
        listeners=(screen.show, tracking.log),
    )
    found = {
        "precision": settings.precision,
        "attention": config.model.attention,
        "compile": settings.compile == "on",
        "micro_batch_size": settings.micro_batch_size,
    }
    saver = saver_of(config, ranks)(
        path / "checkpoints",
        settings.save_every,
        settings.keep_checkpoints,
        {"tokenizer": tokenizer.fingerprint, **found, **kind.state},
    )
    guard = Guard(
        config.recovery,
        saver,
        path / "incidents.jsonl",
        lambda: kind.model(config),
        teller(console),
        before.get("recovery", {}),
    )
    samples = Samples(path / "samples.jsonl", settings.sample_every, settings.sample_prompt, write_sample)
    if ranks.rank:  # what all must do alike; the first does the rest
        return [Signals(), guard, samples, saver]
    return [Signals(), screen, MicroBatches(teller(console)), guard, metrics, tracking, samples, saver]


def resolve_vocabulary(config: RunConfig, tokenizer: Tokenizer) -> RunConfig:
    """Set model.vocab_size from the tokenizer. Raises ConfigError if the recipe says another."""
    asked = config.model.vocab_size
    if asked is not None and asked != tokenizer.vocab_size:
        raise ConfigError(
            f"model.vocab_size: {asked} is not the tokenizer's {tokenizer.vocab_size}; leave it out and it is right"
        )
    model = config.model.model_copy(update={"vocab_size": tokenizer.vocab_size})
    return config.model_copy(update={"model": model})


def check_same_text(path: Path, sha256: Mapping[str, str]) -> None:
    """Raises RunError if the data's hashes by split are not those of the run's receipt."""
    receipt = read_receipt(path)
    if receipt and receipt["data"]["sha256"] != sha256:
        raise RunError(f"{path} was trained on another text than this one is now; choose a new --name")


def check_lengths(prepared: Prepared, seq_len: int, flag: str) -> None:
    """Raises DataError if a split is shorter than one window of context."""
    for split in ("train", "val"):
        count = prepared.splits[split].count
        if count < seq_len + 1:
            raise DataError(
                f"the {'training' if split == 'train' else 'validation'} text has {count} tokens, but one window needs "
                f"{seq_len + 1}; give more text, or set {flag} {max(1, count // 2)}"
            )


def bytes_per_token(tokens: np.ndarray, text_bytes: int, tokenizer: Tokenizer) -> float:
    """Source bytes of one predicted token: the first token of the split is not predicted."""
    return (text_bytes - len(tokenizer.token_bytes(int(tokens[0])))) / max(1, len(tokens) - 1)


def _finish(trainer: Trainer, path: Path, tokenizer: Tokenizer, config: RunConfig, console: Console) -> TrainedRun:
    ranks = trainer.runtime.ranks
    rows = ranks.share(lambda: _summary(path, config, console))
    model = undivided(trainer.model, config, ranks)
    model.source = path
    model.eval()
    return TrainedRun(path, model, tokenizer, config, trainer.state, rows, ranks.rank)


def _summary(path: Path, config: RunConfig, console: Console) -> list[dict[str, float]]:
    lines = read_lines(path / "metrics.jsonl")
    rows = epoch_table(lines)
    if rows:
        console.print(render_epochs(rows))
    if config.logging.csv:
        write_csv(path / "metrics.csv", lines)
    if config.logging.plots and lines:
        _draw(path, console)
    return rows


def _draw(path: Path, console: Console) -> None:
    from minigpt.errors import UserError
    from minigpt.explanation import plot_runs

    try:
        console.print(f"drawn: {plot_runs([path], path / 'plots' / 'loss.png')}")
    except UserError as error:  # matplotlib is an extra: a run does not fail for want of it
        console.print(f"no plot: {error}")


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """metrics.jsonl as a table; missing values are empty. Raises StorageError."""
    import csv

    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, table.getvalue())
