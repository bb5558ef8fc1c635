"""Fine-tune a model: put together its training, on text or on records of questions and answers."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt.config import LENGTHS, DataConfig, RunConfig, load_config, recipe_settings
from minigpt.config.finetune import AdapterConfig, FinetuneConfig
from minigpt.config.rates import default_rate
from minigpt.config.unused import without_effect, written
from minigpt.console import printer, tell
from minigpt.errors import ConfigError, RunError, StorageError
from minigpt.files import new_folder
from minigpt.layout import LAST, TEMPLATE, RunFolder, is_step
from minigpt.model import GPT
from minigpt.model.cost import build_meta
from minigpt.runs.feeds import Feed, record_feed, text_feed
from minigpt.runs.load import LoadedRun, load_alike, load_run
from minigpt.runs.plan import default_name, plan_run, planned, write_run_files
from minigpt.runs.receipt import read_receipt
from minigpt.runs.resolve import with_clean_texts
from minigpt.runs.settings import quoted
from minigpt.runs.train import TrainedRun, execute
from minigpt.runtime.device import Runtime
from minigpt.runtime.placement import Placement, joined
from minigpt.runtime.precision import Optimizer
from minigpt.runtime.ranks import Ranks
from minigpt.tokenizers.chat_template import Template, load_template, read_template
from minigpt.training import Budget, make_optimizer
from minigpt.training.finetune import add_lora, fingerprint
from minigpt.training.finetune.distill import Distillation
from minigpt.training.finetune.freeze import decay_by_layer, freeze
from minigpt.training.finetune.lora import adapter
from minigpt.training.finetune.preference import Preference
from minigpt.training.finetune.records import holds_records, read_sides
from minigpt.training.objective import WHOLE, Loss, Saved
from minigpt.weights import checkpoint
from minigpt.weights.aside import kept_for_others, mark_needed
from minigpt.weights.checkpoint_state import read_state
from minigpt.weights.pretrained import is_huggingface

SKILL_STEPS, MOST_PASSES = 1200, 30
"""Number of steps that teach a new skill, by measurement (docs/LOG.md); and the largest number of passes."""
SKILL_WIDTH = 512
"""Widest model for which answering is a new skill; wider models are assumed to be pretrained, and forget easily."""


def fine_tune(
    base: str | Path | None = None,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    resume: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
    command: str = "minigpt.fine_tune(...), called from Python",
) -> TrainedRun:
    """Train a model further, or continue a fine-tuning of the same name and settings.

    fine_tune("runs/my", "chats.jsonl", {"lora.rank": 8, "train.max_epochs": 5}, name="chat")

    Args:
        base: a run, a checkpoint, or a Hugging Face directory (default: the recipe's finetune.base).
        data: any text that `train` takes, or JSON lines of records: see minigpt.training.finetune.records.
        settings: dotted paths to values; they override the recipe's and `tuned_defaults`.
        name, recipe, quiet: as in `train`.
        resume: as in `train`; without a recipe, settings that you leave out are the run's own. A length in `settings`
            replaces the old one.
        command: what was called, for the receipt.

    Raises:
        UserError: see minigpt.errors; saved files stay intact.
    """
    given = {"finetune.base": base, "data.source": data}
    given = {path: str(value) for path, value in given.items() if value is not None} | dict(settings or {})
    asked = load_config(recipe, given)  # reports all mistakes of recipe and settings
    if asked.finetune.base is None:
        raise ConfigError("finetune.base: name the run, checkpoint or Hugging Face directory to start from")
    start, wrote = load_run(asked.finetune.base, "cpu"), written(recipe, given)
    if resume and recipe is None:  # settings that are left out are the run's own
        run = RunFolder(Path(asked.logging.runs_dir) / (name or asked.logging.name or _derived_name(asked, start)))
        recipe = str(run.config) if run.is_run and load_config(run.config).finetune.base else None
    own = recipe_settings(recipe, given)
    if resume and not _without_budget(given):  # a new length replaces the recipe's
        own = {path: value for path, value in own.items() if path not in LENGTHS}
    given = own | given
    config = finetune_config(start, given)
    with joined(config, quiet, divisible=False) as (placement, console):
        for line in without_effect(config, wrote).values():
            printer(console)(line)
        return _tune(start, config, given, name, resume, recipe, command, placement, console)


def _tune(
    start: LoadedRun,
    config: RunConfig,
    given: Mapping[str, Any],
    name: str | None,
    resume: bool,
    recipe: str | None,
    command: str,
    placement: Placement,
    console: Console,
) -> TrainedRun:
    template = _template(config, start)
    tokenizer, limit, asked, ranks = start.tokenizer, config.model.max_seq_len, "", placement.ranks
    if config.schedule.context_warmup:
        raise ConfigError("schedule.context_warmup: a row must be read whole here; leave it 0")
    records = holds_records(config.data.source, config.data.encoding, config.data.text_field)
    only = [field for field in ("val_source", "pack", "dpo_beta") if getattr(config.finetune, field)]
    if only and not records:
        raise ConfigError(
            [f"finetune.{field}: is for records (.jsonl), not for a text; leave it out" for field in only]
        )
    sides = read_sides(config) if records else None
    if sides:
        template = template or (Template() if sides[0][0].kind == "chat" else None)
        asked = min((record.prompt(template or Template()) for record in sides[1]), key=len)
    task = FineTuning(config, start, template, command)
    task.share(config)  # names the layers that the model does not have, before a long text is encoded
    if sides:
        feed = record_feed(config, sides, tokenizer, template or Template(), console)
    else:
        seq_len = config.finetune.seq_len or limit
        feed = ranks.in_turn(lambda: text_feed(config, tokenizer, console, seq_len, "--finetune.seq-len"))
    fitted = _fitted(config, given, feed, asked if 0 < len(tokenizer.encode(asked)) <= limit else "")
    own = default_name(fitted, recipe) if recipe else _derived_name(fitted, start)
    with planned(ranks, plan_run(fitted, name or fitted.logging.name, own, resume, printer(console))) as plan:
        if plan.saved:
            _check_same_start(plan.path, task.origins)
        if ranks.rank == 0:
            _keep_starts(task.origins, plan.path)
        return execute(plan, fitted, tokenizer, feed, task, placement, console, resume)


def _derived_name(config: RunConfig, start: LoadedRun) -> str:
    """The name of a run from its base and its data."""
    return f"{start.name}-{default_name(config, None)}"


def tuned_defaults(base: LoadedRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of fine-tuning that `given` does not set: the base's own shape, cleaning and generation, and

    - 3 epochs, if no budget is given; 16 rows per step; no weight decay;
    - 10 steps of warm-up, at most a fifth of the run, then a cosine to 0;
    - adamw (or muon) at a tenth of its rate from scratch at this width (for width 768: 1.2e-4), so that
      little is forgotten; an adapter learns at ten times that, for any rank (Schulman et al., 2025, "LoRA Without
      Regret"); DPO uses a tenth of these rates;
    - for a new skill (`_is_new_skill`) the rate from scratch, and as many epochs as `passes` says;
    - no compilation, since rows have several widths and runs are short.
    """
    shape, adapter = base.model.config, bool(given.get("lora.rank"))
    fast = adapter or _is_new_skill(shape.embed_dim, given)
    kind = given.get("optimizer.kind", "adamw")
    rate = default_rate(kind, shape.embed_dim)
    out: dict[str, Any] = {
        "optimizer.kind": "adamw",
        "optimizer.learning_rate": rate / (1 if fast else 10) / (10 if given.get("finetune.dpo_beta") else 1),
        "optimizer.weight_decay": 0.0,
        "schedule.warmup_steps": 10,
        "schedule.min_lr_ratio": 0.0,
        "train.batch_size": 16,
        "train.compile": "off",
        "train.sample_prompt": base.config.train.sample_prompt,
        "data.clean": base.config.data.clean,
        # the config names only kinds that can be trained; SentencePiece's is a BPE too
        "tokenizer.kind": "bpe" if base.tokenizer.kind == "sentencepiece" else base.tokenizer.kind,
    }
    if _without_budget(given):
        out["train.max_epochs"] = 3
    for section, part in (("model", shape), ("generation", base.config.generation)):
        out |= {f"{section}.{field}": value for field, value in part.model_dump().items()}
    return out | {"model.attention": "auto"}


def _without_budget(given: Mapping[str, Any]) -> bool:
    return all(given.get(length) is None for length in LENGTHS)


def _is_new_skill(embed_dim: int, given: Mapping[str, Any]) -> bool:
    """Whether a small model learns to answer records: this is new to it, and it has little to forget. Raises
    DataError.
    """
    if embed_dim > SKILL_WIDTH or given.get("finetune.dpo_beta"):
        return False
    data = DataConfig()
    source, encoding, field = (
        str(given.get(f"data.{name}", default))
        for name, default in (("source", ""), ("encoding", data.encoding), ("text_field", data.text_field))
    )
    return bool(source) and holds_records(source, encoding, field)


def passes(steps_per_epoch: float) -> int:
    """How many passes over the records to make, if no budget is given: for SKILL_STEPS steps, but 3 to MOST_PASSES
    passes.
    """
    return min(MOST_PASSES, max(3, math.ceil(SKILL_STEPS / steps_per_epoch)))


def finetune_config(base: LoadedRun, given: Mapping[str, Any]) -> RunConfig:
    """The resolved config: `tuned_defaults`, then `given`, with clean texts. Raises ConfigError."""
    defaults = tuned_defaults(base, given)
    config = load_config(None, {**defaults, **given})
    problems = [
        f"model.{field}: the base has {value}; train a new model to change it"
        for field, value in base.model.config.model_dump().items()
        if field != "attention" and not field.endswith("dropout") and getattr(config.model, field) != value
    ]
    if config.tokenizer.kind != defaults["tokenizer.kind"] or config.tokenizer.path:
        problems.append(f"tokenizer.kind: the base has {base.tokenizer.kind}")
    if "data.source" not in given:
        problems.append("data.source: name the data to learn from")
    if (config.finetune.seq_len or 1) > config.model.max_seq_len:
        problems.append(f"finetune.seq_len: the model reads {config.model.max_seq_len} tokens at most")
    if config.optimizer.has_muon and (config.lora.rank or config.finetune.layer_decay < 1):
        kind = config.optimizer.kind
        problems.append(f"optimizer.kind: {kind} goes with neither lora nor finetune.layer_decay; choose adamw")
    if not config.lora.rank and config.lora != AdapterConfig():
        problems.append("lora: rank is 0, so there is no adapter; give --lora.rank 8")
    if config.lora.rank and config.train.average:
        problems.append(f"train.{config.train.average}: an adapter is saved without an average; leave it 0")
    if config.lora.rank and config.train.precision == "fp8":
        problems.append("train.precision: fp8 does not go with lora; use bf16")
    tuned, plain = config.finetune, FinetuneConfig()
    if not tuned.teacher and any(
        getattr(tuned, name) != getattr(plain, name) for name in ("teacher_weight", "teacher_temperature")
    ):
        problems.append("finetune.teacher: name the teacher that teacher_weight and teacher_temperature are about")
    if tuned.dpo_beta and (tuned.teacher or tuned.pack):
        problems.append("finetune.dpo_beta: pairs go with neither a teacher nor packing")
    if config.train.masked_inputs and (tuned.teacher or tuned.dpo_beta):
        problems.append("train.masked_inputs: goes with neither finetune.teacher nor finetune.dpo_beta; leave it 0")
    if problems:
        raise ConfigError(problems)
    return with_clean_texts(config)


def _template(config: RunConfig, base: LoadedRun) -> Template | None:
    """The template that the config names, else the base's own."""
    if config.finetune.template:
        return read_template(Path(config.finetune.template))
    folder = RunFolder.of(base.path)
    return load_template(folder.path) if folder.template.is_file() else None


class FineTuning:
    """Training that starts from a model: the `Task` of a run that has a base.

    Args:
        config: the run's config.
        base: the model to start from; its weights are copied.
        template: how chats are written, if the records are chats.
        command: the command that started the run, for the receipt.

    Raises ConfigError: a teacher that does not fit the base.
    """

    command = "finetune"

    def __init__(self, config: RunConfig, base: LoadedRun, template: Template | None, command: str):
        self.settings, self.lora, self.base = config.finetune, config.lora, base
        length, what, flag = self.settings.seq_len or config.model.max_seq_len, "finetune.teacher", "--finetune.seq-len"
        self.teachers = [load_alike(path, base, length, what, flag) for path in self.settings.teacher]
        named = {"teacher" + (f" {n}" if n > 1 else ""): run for n, run in enumerate(self.teachers, 1)}
        self.origins = {name: _origin(run) for name, run in {"base": base, **named}.items()}
        self.receipt = {"command": command, **self.origins}
        self.files = {TEMPLATE: template.to_json()} if template else {}
        self.saved = Saved("adapter", adapter) if self.lora.rank else WHOLE
        self.evaluate_objective = self.settings.dpo_beta > 0
        self.others = [base.model] if self.evaluate_objective else [teacher.model for teacher in self.teachers]
        adapted = {"lora": self.lora.model_dump(mode="json"), "base": self.origins["base"]}
        self.state: Mapping[str, Any] = adapted if self.lora.rank else {}

    def model(self, config: RunConfig) -> GPT:
        """The base, with a new adapter if the config has one."""
        model = GPT(config.model, seed=config.train.seed)
        model.load_weights(self.base.model.weights())
        return self._adapted(model, config)

    def _adapted(self, model: GPT, config: RunConfig) -> GPT:
        if self.lora.rank:
            add_lora(model, self.lora, config.train.seed)
        freeze(model, self.settings.freeze)
        return model

    def objective(self, runtime: Runtime) -> Loss | None:
        """The loss of distillation, or of preferences between two answers; None for neither."""
        if self.teachers:
            teachers = [teacher.model.to(runtime.device) for teacher in self.teachers]
            return Distillation(teachers, self.settings.teacher_weight, self.settings.teacher_temperature)
        if self.settings.dpo_beta:
            return Preference(self.base.model.to(runtime.device), self.settings.dpo_beta)
        return None

    def optimizer(self, model: GPT, config: RunConfig, precision: str, ranks: Ranks) -> Optimizer:
        """The optimizer of the config; with layer_decay, lower layers learn more slowly."""
        optimizer = make_optimizer(model, config.optimizer, precision, ranks)
        if self.settings.layer_decay < 1:
            decay_by_layer(model, optimizer, self.settings.layer_decay)
        return optimizer

    def share(self, config: RunConfig) -> float:
        """The share of parameters that learn, counted from shapes only."""
        parameters = list(self._adapted(build_meta(config.model), config).parameters())
        return sum(p.numel() for p in parameters if p.requires_grad) / sum(p.numel() for p in parameters)


def _origin(run: LoadedRun) -> dict[str, str]:
    return {"path": str(run.checkpoint.resolve()), "sha256": fingerprint(run.model)}


def _check_same_start(path: Path, now: Mapping[str, Any]) -> None:
    """Raise RunError if base or teacher have other weights than the run's receipt says."""
    before = read_receipt(path) or now
    for name, origin in now.items():
        if before[name]["sha256"] != origin["sha256"]:
            first = Path(before[name]["path"])
            other = f"{[first, *kept_for_others(first)][-1]} and --resume, or " if name == "base" else ""
            raise RunError(
                f"{path} began with a {name} of other weights than {origin['path']} has now; give {other}a new --name"
            )


def _keep_starts(origins: Mapping[str, Any], run: Path) -> None:
    """Mark the checkpoints of base and teachers: this run needs them to continue, and an adapter always.

    Raises RunError: one has just been deleted by its run, which trains.
    """
    for path in (Path(origin["path"]) for origin in origins.values()):
        if is_step(path.name):
            try:
                mark_needed(path, run)
            except StorageError as error:
                tell(f"keep {path}: {run.name} needs it, but its run will delete it if it trains on ({error})")
            if not path.exists():
                raise RunError(f"{path}: its run trains, and has just deleted it; try again")


def _fitted(config: RunConfig, given: Mapping[str, Any], feed: Feed, prompt: str) -> RunConfig:
    """Fill in settings that follow from the data, if they are not given: a sample's prompt, passes, shorter warm-up."""
    if _without_budget(given) and _is_new_skill(config.model.embed_dim, given):
        config = config.changed(train={"max_epochs": float(passes(feed.batches.steps_per_epoch))})
    if prompt and "train.sample_prompt" not in given:
        config = config.changed(train={"sample_prompt": prompt})
    steps = Budget(config.train, feed.batches.steps_per_epoch, feed.batches.tokens_per_step).total_steps
    if steps and "schedule.warmup_steps" not in given:
        config = config.changed(schedule={"warmup_steps": min(config.schedule.warmup_steps, steps // 5)})
    return config


def merge_run(run: str | Path, out: str | Path) -> Path:
    """Write the best weights of a run, with its adapter merged in, as an ordinary run directory without a base.

    Raises:
        RunError: `out` is not empty, or this is not a run.
        UserError: as `load_run`.
    """
    if is_huggingface(Path(run)):
        raise RunError(f"{run}: is a whole model already; give a run of minigpt finetune")
    loaded, out = load_run(run, "cpu"), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is there already; give --out a new directory")
    kept = replace(read_state(loaded.checkpoint), lora=None, base=None)
    folder = RunFolder.of(loaded.path)
    receipt = read_receipt(folder.path) | {"merged": str(loaded.checkpoint)}
    with new_folder(out) as work:
        written = RunFolder(work)
        tensors = {"model": loaded.model.weights(), "optimizer": {}}
        step = checkpoint.save(written.checkpoint(loaded.step), tensors, kept)
        checkpoint.point(step.parent, LAST, step)
        config = loaded.config.model_copy(update={"lora": AdapterConfig()})
        name = quoted(folder.path.as_posix())
        write_run_files(work, config, receipt, f"The settings of {name}; its adapter is merged into the weights here")
        loaded.tokenizer.save(written.tokenizer)
        if folder.template.is_file():
            load_template(folder.path).save(work)
    return out
