"""Build a run from its config and train it: the place where all parts meet."""

import io
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

from rich.console import Console

from minigpt import __version__, tokenizers
from minigpt.before_torch import SWITCH
from minigpt.config import LENGTHS, RunConfig, load_config
from minigpt.console import printer, progress_bars, scored_on
from minigpt.errors import ConfigError, DataError, RunError, UserError
from minigpt.evals.report import Report
from minigpt.files import read_lines, write_text
from minigpt.generation.text import complete
from minigpt.layout import RunFolder
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token
from minigpt.runs.data import make_tokenizer
from minigpt.runs.feeds import Feed, text_feed
from minigpt.runs.load import check_same_tokenizer
from minigpt.runs.plan import Plan, compare, default_name, plan_run, planned, write_run_files
from minigpt.runs.receipt import make_receipt, read_receipt, text_has_changed
from minigpt.runs.resolve import Resolved, as_computed, make_learner, resolve, with_clean_texts
from minigpt.runs.score import kept_score, score_run
from minigpt.runs.settings import quoted
from minigpt.runs.task import FromScratch, Task
from minigpt.runtime.device import hardware, mkl_code
from minigpt.runtime.placement import Placement, joined
from minigpt.runtime.precision import with_masters
from minigpt.runtime.ranks import Ranks
from minigpt.tokenizers import Tokenizer
from minigpt.training import Hook, Trainer
from minigpt.training.hooks.average import Average, TailAverage
from minigpt.training.hooks.checkpoints import Checkpoints
from minigpt.training.hooks.early_stopping import EarlyStopping
from minigpt.training.hooks.epochs import epoch_table, render_epochs
from minigpt.training.hooks.guard import Guard
from minigpt.training.hooks.metrics import Metrics
from minigpt.training.hooks.plateau import Plateau
from minigpt.training.hooks.samples import Samples
from minigpt.training.hooks.screen import Screen
from minigpt.training.hooks.sharing import Sharing
from minigpt.training.hooks.signals import Signals
from minigpt.training.hooks.tracking import Tracking
from minigpt.training.memory import MicroBatches, memory_errors
from minigpt.training.step import Batch
from minigpt.weights.checkpoint_state import CheckpointState, TrainState


@dataclass(frozen=True)
class TrainedRun:
    """The result of `train`: the run directory, the model with its last weights (not the best, and not
    their average), the final state.
    """

    path: Path
    model: GPT
    tokenizer: Tokenizer
    config: RunConfig
    state: TrainState
    epochs: list[dict[str, float]]
    rank: int = 0  # number of this process among those that trained the run
    report: Report | None = None  # `minigpt eval` of the best checkpoint; None if it was not scored


def train(
    config: RunConfig,
    data: str | Path | None = None,
    name: str | None = None,
    resume: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
    task: Task | None = None,
    tokenizer: Tokenizer | None = None,
) -> TrainedRun:
    """Train a GPT as the config says, or continue an unfinished run of the same name and settings.

    train(load_config("recipe.yaml"), data="my.txt")

    Args:
        config: from `load_config`.
        data: text to use in place of config.data.source.
        name: name of the run (default: from config.logging.name, the recipe, or the data).
        resume: continue a run with changed settings (a longer budget); else only with the same settings.
        recipe: path of the file that the config was read from, for the default name.
        quiet: print nothing.
        task: the kind of training (default: from scratch).
        tokenizer: the config's tokenizer, if it was made before.

    Raises:
        UserError: see minigpt.errors; saved files stay intact.
    """
    if given := [name for name in ("finetune", "lora") if getattr(config, name) != getattr(RunConfig(), name)]:
        raise ConfigError(
            [f"{name}: train starts from scratch; minigpt finetune takes these settings" for name in given]
        )
    if data is not None:  # it may have another number of ids than the text of a run whose config.yaml this is
        config = config.changed(data={"source": str(data)}, model={"vocab_size": None})
    config = with_clean_texts(config)
    with joined(config, quiet) as (placement, console):
        ranks, tell = placement.ranks, printer(console)
        own = plan_run(config, name or config.logging.name, default_name(config, recipe), resume, tell)
        with planned(ranks, own) as plan:
            tell(f"{plan.path}: reading {config.data.source}")
            known = ranks.broadcast(lambda: _tokenizer(plan, config, console, tokenizer))
            feed = ranks.in_turn(lambda: text_feed(config, known, console, config.model.max_seq_len))
            return execute(plan, config, known, feed, task or FromScratch(), placement, console, resume)


def _tokenizer(plan: Plan, config: RunConfig, console: Console, made: Tokenizer | None) -> Tokenizer:
    if plan.saved:
        return tokenizers.load(plan.path)
    if made:
        return made
    with progress_bars(console) as report:
        return make_tokenizer(config, report)


def execute(
    plan: Plan,
    config: RunConfig,
    tokenizer: Tokenizer,
    feed: Feed,
    task: Task,
    placement: Placement,
    console: Console,
    resume: bool,
) -> TrainedRun:
    """Start the run, or resume it from its last checkpoint; write its directory. Raises the errors of `train`."""
    check_alike(placement.ranks, config.data.source, feed.sha256)
    saved = plan.saved
    if saved:
        step = saved.train.step
        console.print(f"{plan.path}: {'finished at' if plan.finished else 'continues from'} step {step}")
        check_same_tokenizer(tokenizer, saved.state, plan.path)
        check_same_text(plan.path, feed.sha256)
        code = read_receipt(plan.path).get("hardware", {}).get("mkl", "usual")
        if code != mkl_code():
            console.print(f"the last bits of results may differ from those before; {SWITCH}={code} gives the same bits")
        config = keep_evaluations(config, plan.path)
    before = saved.state if saved else CheckpointState()
    resolved = resolve(config, tokenizer, feed, task, placement, before, console)
    trainer = build(resolved, plan.path, tokenizer, feed, task, console, before)
    if saved:
        trainer.resume(saved)
        if resolved.config.train.micro_batch_size != saved.state.micro_batch_size:
            trainer.state.micro_batch_size = None  # the size to which the old one was halved when memory ran out
        if resume and trainer.done:
            changed = compare(load_config(RunFolder(plan.path).config), config, strict=True)
            if not {*LENGTHS}.isdisjoint(changed):
                done = trainer.state.step
                longer = f"give a longer length, such as --train.max-steps {2 * done}"
                raise RunError(f"{plan.path}: is at step {done}, where this length has ended already; {longer}")
        if plan.finished and (trainer.done or not resume):
            trainer.state = saved.train
            own = f"minigpt train {quoted(RunFolder(plan.path).config.as_posix())} " if task.command == "train" else ""
            more = f"{own}--resume --train.max-steps {2 * saved.train.step}"
            console.print(f"nothing left to do; {more} continues, another --name starts a new run")
            return _finish(trainer, plan.path, tokenizer, resolved, feed, console)
    if placement.ranks.rank == 0:
        _write_files(plan.path, resolved, tokenizer, feed, task, resume)
    parameters = sum(p.numel() for p in trainer.model.parameters())
    learning = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    share = "" if learning == parameters else f", of which {learning:,} learn"
    console.print(f"{plan.path}: {parameters:,} parameters{share}, {tokenizer.vocab_size:,} {tokenizer.kind} ids, "
                  f"{feed.size}, {trainer.runtime}")  # fmt: skip
    console.print(f"validation: {scored_on('val', resolved.config.train.eval_batches)}")
    steps, warmup = trainer.budget.total_steps, resolved.config.schedule.warmup_steps
    if steps and steps <= warmup:
        shorter = f"--schedule.warmup-steps {steps // 10}"
        console.print(f"the rate only rises: warm-up takes {warmup} steps, and the run {steps}; {shorter} is usual")
    with memory_errors(trainer), trainer.runtime.products():
        trainer.run()
    return _finish(trainer, plan.path, tokenizer, resolved, feed, console)


def keep_evaluations(config: RunConfig, path: Path) -> RunConfig:
    """The config; if `eval_every` is auto, it becomes the number with which the run at `path` began."""
    if config.train.eval_every != "auto":
        return config
    return config.changed(train={"eval_every": load_config(RunFolder(path).config).train.eval_every})


def _write_files(path: Path, resolved: Resolved, tokenizer: Tokenizer, feed: Feed, task: Task, resume: bool) -> None:
    """Write the files that a run directory has before the first step. A run with the same settings keeps its budget."""
    config, ranks = resolved.config, resolved.placement.ranks
    versions = {"minigpt": __version__, **{name: version(name) for name in ("torch", "numpy", "pydantic")}}
    changed = resume and compare(load_config(RunFolder(path).config), config, strict=True)
    before = {} if changed else read_receipt(path)
    receipt = before | make_receipt(config, feed.sha256, hardware(), versions)
    receipt |= {"ranks": ranks.world, **task.receipt}
    file = quoted(RunFolder(path).config.as_posix())  # with /, so that no shell of Windows needs quotes
    about = f"The resolved settings of this run; to repeat it: minigpt {task.command} {file}"
    write_run_files(path, config, receipt, about)
    tokenizer.save(RunFolder(path).tokenizer)
    for name, text in task.files.items():
        write_text(path / name, text)


def build(
    resolved: Resolved,
    path: Path,
    tokenizer: Tokenizer,
    feed: Feed,
    task: Task,
    console: Console,
    before: CheckpointState,
) -> Trainer:
    """Make the trainer with all its parts; it writes below `path`. `before`: state of the checkpoint to resume from."""
    config, runtime, placement = resolved.config, resolved.runtime, resolved.placement
    model, stepped, evaluated = make_learner(config, runtime, placement, task, resolved.shared)
    if shared := resolved.shared:
        shared.tie(model.head)
        share = f"{len(shared.others):,} of {tokenizer.vocab_size:,} ids"
        console.print(f"{share} are not in the training text, and share a row: a step computes {shared.count:,} logits")
    optimizer = with_masters(task.optimizer(model, config, runtime.precision, placement.ranks), model, runtime)

    def validation() -> Iterable[Batch]:
        size, count = placement.eval_size(config.train, cast(Trainer, own()).state.micro_batch_size)
        return feed.validation(size, count, config.train.rows // size)

    trainer = Trainer(
        model,
        optimizer,
        feed.batches,
        validation,
        config.train,
        config.schedule,
        runtime,
        config.optimizer.learning_rate,
        make_hooks(resolved, model, path, tokenizer, feed, task, console, before),
        placement.learner(model, stepped),
        evaluated,
        task.saved,
    )
    own = weakref.ref(trainer)  # a cycle would keep optimizer and token files until Python collects garbage
    return trainer


def make_hooks(
    resolved: Resolved,
    model: GPT,
    path: Path,
    tokenizer: Tokenizer,
    feed: Feed,
    task: Task,
    console: Console,
    before: CheckpointState,
) -> list[Hook]:
    """Make the hooks of a run, in the order in which they are called."""
    config, placement = resolved.config, resolved.placement
    settings, shape, ranks, tell = config.train, config.model, placement.ranks, printer(console)
    folder = RunFolder(path)

    def write_sample(trainer: Trainer) -> str | None:
        whole = placement.whole(trainer.model, needed=ranks.rank == 0)
        if ranks.rank:
            return None
        fields: dict[str, Any] = config.generation.model_dump() | {"num_samples": 1}
        prompt = tokenizer.encode(settings.sample_prompt)  # ids, so that no sample warns about unknown characters
        with trainer.runtime.autocast():
            return complete(whole, [prompt], tokenizer, **fields)[0][0].text

    found = {
        "precision": settings.precision,
        "attention": shape.attention,
        "compile": settings.compile == "on",
        "micro_batch_size": settings.micro_batch_size,
    }
    saver = _saver(placement)(
        folder.checkpoints,
        settings.save_every,
        settings.keep_checkpoints,
        {"tokenizer": tokenizer.fingerprint, **found, **task.state},
    )
    incidents, memory = folder.incidents, before.recovery
    guard = Guard(config.recovery, saver, incidents, lambda: task.model(config), tell, memory)
    every, prompt, gathers = settings.sample_every, settings.sample_prompt, placement.shards > 1
    samples = Samples(folder.samples, every, prompt, write_sample, tell, gathers)
    common: list[Hook] = [Sharing(resolved.shared)] if resolved.shared else []
    if settings.ema_decay:
        common.append(Average(model, settings.ema_decay))
    if settings.average_last:
        common.append(TailAverage(model, settings.average_last))
    if config.schedule.kind == "cosine+plateau":
        common.append(Plateau(config.schedule))
    last = [EarlyStopping(settings.early_stopping)] if settings.early_stopping else []
    if ranks.rank:  # the hooks that all ranks need; the first rank has all hooks
        return [*common, Signals(), guard, samples, saver, *last]
    screen, tracking = Screen(console), Tracking(config, path, tell)
    computed = as_computed(config, resolved.shared)
    metrics = Metrics(
        folder.metrics,
        config.logging.log_every,
        cache(lambda parts: step_flops(computed, task, parts)),
        feed.bytes_per_token,
        listeners=(screen.show, tracking.log),
    )
    return [*common, Signals(), screen, MicroBatches(tell), guard, metrics, tracking, samples, saver, *last]


def step_flops(config: RunConfig, task: Task, parts: int) -> float:
    """FLOPs per token of a training step, if windows are split into `parts` parts.

    A third of the model's work is forward, a third the gradients of what flows, a third those of the weights that
    learn. The task's other models (teachers, a reference) only compute forward.
    """
    shapes = (config.model, *(other.config for other in task.others))
    own, *others = (shape.model_copy(update={"max_seq_len": config.seq_len // parts}) for shape in shapes)
    work = config.train.passes * (2 + task.share(config)) / 3 * flops_per_token(own)
    return work + sum(flops_per_token(other, training=False) for other in others)


def _saver(placement: Placement) -> type[Checkpoints]:
    """The hook that writes checkpoints."""
    if not (placement.shards > 1 and placement.parallel.sharded_checkpoints):
        return Checkpoints
    from minigpt.training.hooks.sharded_checkpoints import ShardedCheckpoints

    return ShardedCheckpoints


def check_same_text(path: Path, sha256: Mapping[str, str]) -> None:
    """Raise RunError if the sha256 of a split is not the one in the run's receipt."""
    if text_has_changed(path, sha256):
        raise RunError(f"{path} was trained on another text: the data has changed since; choose a new --name")


def check_alike(ranks: Ranks, source: str, sha256: Mapping[str, str]) -> None:
    """Raise DataError if the splits of this rank are not those of rank 0: each host may have its own copy of a text."""
    if ranks.broadcast(lambda: sha256) != sha256:
        raise DataError(f"{source}: {ranks} has another text than rank 0; copy it from there")


def _finish(
    trainer: Trainer, path: Path, tokenizer: Tokenizer, resolved: Resolved, feed: Feed, console: Console
) -> TrainedRun:
    config, ranks, tell = resolved.config, resolved.placement.ranks, printer(console)
    report = ranks.broadcast(lambda: _score(trainer, path, feed, console))
    rows = ranks.broadcast(lambda: _summary(path, config, console))
    if feed.caveat:
        tell(feed.caveat)
    model = resolved.placement.whole(trainer.model)
    model.source = path
    model.eval().zero_grad()  # a loop of the caller's own would add to the last step's gradients
    model.shared = None
    return TrainedRun(path, model, tokenizer, config, trainer.state, rows, ranks.rank, report)


def _score(trainer: Trainer, path: Path, feed: Feed, console: Console) -> Report | None:
    """The scores of the best checkpoint: the saved ones, else measured now if the run has finished, else None."""
    state = trainer.state
    if feed.text is None or not state.best_step:
        return None
    if (kept := kept_score(path, state.best_step)) or not state.finished:
        return kept
    return score_run(path, feed.text, state.tokens, str(trainer.runtime.device), console)


def _summary(path: Path, config: RunConfig, console: Console) -> list[dict[str, float]]:
    folder = RunFolder(path)
    lines = read_lines(folder.metrics)
    rows = epoch_table(lines, _per_token(config))
    if rows:
        console.print(render_epochs(rows))
        scored = scored_on("val", config.train.eval_batches)
        console.print(f"train: the steps just before the evaluation; val: {scored}")
    if config.logging.csv:
        write_csv(folder.metrics_csv, lines)
    if config.logging.plots and lines:
        _draw(path, console)
    return rows


def _per_token(config: RunConfig) -> tuple[str, ...]:
    """Which of a run's losses, "train" and "val", are nats per token of the text."""
    if config.finetune.dpo_beta:  # nats per pair
        return ()
    mixed = config.train.label_smoothing or config.finetune.teacher  # only evaluations have the plain loss
    return ("val",) if mixed else ("train", "val")


def _draw(path: Path, console: Console) -> None:
    from minigpt.explanation import plot_runs

    try:
        console.print(f"drawn: {plot_runs([path], RunFolder(path).plot('loss.png'))}")
    except UserError as error:  # matplotlib is an extra: a run without it does not fail
        console.print(f"no plot: {error}")


def write_csv(path: Path, lines: list[dict[str, Any]]) -> None:
    """metrics.jsonl as a table; missing values are empty. Raises StorageError."""
    import csv

    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(key for line in lines for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    write_text(path, table.getvalue())
