"""Fine-tune: the assembly of training, from a model that is there, on text or on records of questions and answers."""

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from rich.console import Console

from minigpt.config import RunConfig, find_recipe, load_config, parse_yaml
from minigpt.config.finetune import AdapterConfig, FinetuneConfig
from minigpt.config.tree import default_rate
from minigpt.errors import ConfigError, DataError, RunError, TokenizerError
from minigpt.layout import run_folder
from minigpt.model import GPT
from minigpt.runs.load import LoadedRun, load_run
from minigpt.runs.plan import default_name, plan_run, read_receipt, write_run_files
from minigpt.runs.ranks import joined, planned
from minigpt.runs.train import Feed, Kind, TrainedRun, execute, teller, text_feed
from minigpt.runtime.ranks import Ranks
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.chat_template import FILE_NAME, Template, encode, load_template, read_template
from minigpt.training import Budget, Trainer
from minigpt.training.finetune import add_lora, fingerprint
from minigpt.training.finetune.distill import Distilled
from minigpt.training.finetune.freeze import AdapterTrainer, decay_by_layer, freeze
from minigpt.training.finetune.preference import (
    AdapterPreferenceTrainer,
    Pair,
    PreferenceTrainer,
    Preferring,
    stack_pairs,
)
from minigpt.training.finetune.records import Record, holds_records, read_records, split_records
from minigpt.training.finetune.row_batches import Batch, Row, RowBatches, fit, pack, row_eval_batches, stack
from minigpt.weights import checkpoint

_BUDGETS = ("max_steps", "max_epochs", "max_tokens", "max_minutes")
_MODEL_MAY_CHANGE = ("dropout", "attention")


def fine_tune(
    base: str | Path | None = None,
    data: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    name: str | None = None,
    resume: bool = False,
    recipe: str | None = None,
    quiet: bool = False,
) -> TrainedRun:
    """Train a model further, or continue a fine-tuning of the same name and settings.

    fine_tune("runs/my", "chats.jsonl", {"lora.rank": 8, "train.max_epochs": 5}, name="chat")

    Args:
        base: a run, a checkpoint, or a Hugging Face directory (default: the recipe's finetune.base).
        data: any text that `train` takes, or JSON lines of records: see minigpt.training.finetune.records.
        settings: dotted paths to values, over the recipe's and over `tuned_defaults`.
        name, resume, recipe, quiet: as in `train`.

    Raises:
        UserError: see minigpt.errors; nothing is lost.
    """
    given = {"finetune.base": base, "data.source": data}
    given = {path: str(value) for path, value in given.items() if value is not None} | dict(settings or {})
    source = load_config(recipe, given).finetune.base  # and all mistakes of recipe and settings are told
    if source is None:
        raise ConfigError("finetune.base: name the run, checkpoint or Hugging Face directory to start from")
    start = load_run(source, "cpu")
    given = settings_of(recipe) | given
    config = finetune_config(start, given)
    with joined(config, quiet, divisible=False) as (ranks, console):
        return _tune(start, config, given, name, resume, recipe, ranks, console)


def _tune(
    start: LoadedRun,
    config: RunConfig,
    given: Mapping[str, Any],
    name: str | None,
    resume: bool,
    recipe: str | None,
    ranks: Ranks,
    console: Console,
) -> TrainedRun:
    template = _template(config, start)
    tokenizer, limit, asked = start.tokenizer, config.model.max_seq_len, ""
    if config.schedule.context_warmup:
        raise ConfigError("schedule.context_warmup: a row must be read whole here; leave it 0")
    if holds_records(config.data.source, config.data.encoding, config.data.text_field):
        sides = _read_sides(config)
        template = template or (Template() if sides[0][0].kind == "chat" else None)
        feed = _record_feed(config, sides, tokenizer, template or Template(), console)
        asked = min((record.prompt(template or Template()) for record in sides[1]), key=len)
    elif config.finetune.val_source or config.finetune.pack or config.finetune.dpo_beta:
        raise ConfigError("finetune: val_source, pack and dpo_beta are for records (.jsonl), not for a text")
    else:
        seq_len = config.finetune.seq_len or limit
        feed = ranks.in_turn(lambda: text_feed(config, tokenizer, console, seq_len, "--finetune.seq-len"))
    fitted = _fitted(config, given, feed, asked if 0 < len(tokenizer.encode(asked)) <= limit else "")
    stem = default_name(fitted, None)
    own = default_name(fitted, recipe) if recipe else f"{start.name}-{stem}"
    with planned(ranks, plan_run(fitted, name or fitted.logging.name, own, resume, teller(console))) as plan:
        kind = _kind(fitted, start, template)
        if plan.saved:
            _check_same_start(plan.path, kind.receipt)
        return execute(plan, fitted, tokenizer, feed, console, resume, kind, ranks)


def tuned_defaults(base: LoadedRun, given: Mapping[str, Any]) -> dict[str, Any]:
    """What fine-tuning sets where `given` does not: the base's own shape, cleaning and generation, and

    - 3 epochs, if no budget is given; 16 rows a step; no weight decay;
    - 10 steps of warm-up, a fifth of the run at most, then a cosine to 0;
    - adamw at a tenth of the rate from nothing at this width (for width 768: 1.2e-4), so that little is forgotten; an
      adapter learns at ten times that, whatever its rank (Schulman et al., 2025, "LoRA Without Regret"); DPO takes a
      tenth of either;
    - no compilation, since rows have several widths and runs are short.
    """
    shape, adapter = base.model.config, bool(given.get("lora.rank"))
    kind = given.get("optimizer.kind", "adamw")
    rate = default_rate("muon" if kind == "muon" else "adamw", shape.embed_dim)
    out: dict[str, Any] = {
        "optimizer.kind": "adamw",
        "optimizer.learning_rate": rate / (1 if adapter else 10) / (10 if given.get("finetune.dpo_beta") else 1),
        "optimizer.muon_learning_rate": 0.002,
        "optimizer.weight_decay": 0.0,
        "schedule.warmup_steps": 10,
        "schedule.min_lr_ratio": 0.0,
        "train.batch_size": 16,
        "train.compile": "off",
        "train.sample_prompt": base.config.train.sample_prompt,
        "data.clean": base.config.data.clean,
        "tokenizer.kind": base.tokenizer.kind,
    }
    if all(given.get(f"train.{budget}") is None for budget in _BUDGETS):
        out["train.max_epochs"] = 3
    for section, part in (("model", shape), ("generation", base.config.generation)):
        out |= {f"{section}.{field}": value for field, value in part.model_dump().items()}
    return out | {"model.attention": "auto"}


def settings_of(recipe: str | None) -> dict[str, Any]:
    """The settings of a recipe that `load_config` has read, by dotted paths."""
    tree = parse_yaml(find_recipe(recipe).read_text(encoding="utf-8")) or {} if recipe else {}
    return {f"{section}.{field}": value for section, part in tree.items() for field, value in part.items()}


def finetune_config(base: LoadedRun, given: Mapping[str, Any]) -> RunConfig:
    """The resolved config: `tuned_defaults`, then `given`. Raises ConfigError."""
    defaults = tuned_defaults(base, given)
    config = load_config(None, {**defaults, **given})
    problems = [
        f"model.{field}: is the base's, {value}; train a model anew to change it"
        for field, value in base.model.config.model_dump().items()
        if field not in _MODEL_MAY_CHANGE and getattr(config.model, field) != value
    ]
    if config.tokenizer.kind != base.tokenizer.kind or config.tokenizer.path:
        problems.append(f"tokenizer.kind: is the base's, {base.tokenizer.kind}")
    if "data.source" not in given:
        problems.append("data.source: name the data to learn from")
    if (config.finetune.seq_len or 1) > config.model.max_seq_len:
        problems.append(f"finetune.seq_len: the model reads {config.model.max_seq_len} tokens at most")
    if config.optimizer.kind == "muon" and (config.lora.rank or config.finetune.layer_decay < 1):
        problems.append("optimizer.kind: muon goes with neither lora nor finetune.layer_decay; choose adamw")
    if not config.lora.rank and config.lora != AdapterConfig():
        problems.append("lora: rank is 0, so there is no adapter; give --lora.rank 8")
    if config.lora.rank and config.train.ema_decay:
        problems.append("train.ema_decay: an adapter is saved without an average; leave it 0")
    tuned, plain = config.finetune, FinetuneConfig()
    if tuned.teacher is None and any(
        getattr(tuned, name) != getattr(plain, name) for name in ("teacher_weight", "teacher_temperature")
    ):
        problems.append("finetune.teacher: name the teacher that teacher_weight and teacher_temperature are about")
    if tuned.dpo_beta and (tuned.teacher or tuned.pack):
        problems.append("finetune.dpo_beta: pairs go with neither a teacher nor packing")
    if problems:
        raise ConfigError(problems)
    return config


def _template(config: RunConfig, base: LoadedRun) -> Template | None:
    """What the config names, else the base's own."""
    if config.finetune.template:
        return read_template(Path(config.finetune.template))
    folder = run_folder(base.path)
    return load_template(folder) if (folder / FILE_NAME).is_file() else None


def _kind(config: RunConfig, base: LoadedRun, template: Template | None) -> Kind:
    weights, settings, rank = base.model.weights(), config.finetune, config.lora.rank
    teacher = _teacher(settings.teacher, base, settings.seq_len or config.model.max_seq_len)
    trainers = {
        (False, False): Trainer,
        (False, True): AdapterTrainer,
        (True, False): PreferenceTrainer,
        (True, True): AdapterPreferenceTrainer,
    }
    receipt = {name: _origin(run) for name, run in (("base", base), ("teacher", teacher)) if run}

    def make(config: RunConfig) -> GPT:
        model = GPT(config.model, seed=config.train.seed)
        model.load_weights(weights)
        if rank:
            add_lora(model, config.lora, config.train.seed)
        freeze(model, settings.freeze)
        return model

    def adjust(trainer: Trainer) -> None:
        if settings.layer_decay < 1:
            decay_by_layer(trainer.model, trainer.optimizer, settings.layer_decay)
        if teacher:
            model = teacher.model.to(trainer.runtime.device)
            distilled = Distilled(trainer.forward, model, settings.teacher_weight, settings.teacher_temperature)
            trainer.forward = cast(GPT, distilled)  # a step calls loss and parameters, no more
        if settings.dpo_beta:
            reference = base.model.to(trainer.runtime.device)
            trainer.forward = cast(GPT, Preferring(trainer.forward, reference, settings.dpo_beta))

    return Kind(
        command="finetune",
        model=make,
        trainer=trainers[bool(settings.dpo_beta), bool(rank)],
        adjust=adjust,
        state={"lora": config.lora.model_dump(mode="json"), "base": receipt["base"]} if rank else {},
        receipt=receipt,
        files={FILE_NAME: template.to_json()} if template else {},
    )


def _teacher(path: str | None, base: LoadedRun, seq_len: int) -> LoadedRun | None:
    """The teacher, if there is one. Raises ConfigError if it does not fit the base."""
    if path is None:
        return None
    teacher = load_run(path, "cpu")
    if teacher.tokenizer.fingerprint != base.tokenizer.fingerprint:
        raise ConfigError(f"finetune.teacher: {path} has another tokenizer than {base.path}; it must have the same")
    if teacher.model.config.max_seq_len < seq_len:
        limit = teacher.model.config.max_seq_len
        raise ConfigError(f"finetune.teacher: {path} reads {limit} tokens at most; set --finetune.seq-len {limit}")
    return teacher


def _origin(run: LoadedRun) -> dict[str, str]:
    return {"path": str(run.checkpoint.resolve()), "sha256": fingerprint(run.model)}


def _check_same_start(path: Path, now: Mapping[str, Any]) -> None:
    """Raises RunError if base or teacher have other weights than the run's receipt says."""
    before = read_receipt(path) or now
    for name, origin in now.items():
        if before[name]["sha256"] != origin["sha256"]:
            raise RunError(
                f"{path} began with a {name} of other weights than {origin['path']} has now; give "
                f"{before[name]['path']}, or a new --name"
            )


def _read_sides(config: RunConfig) -> tuple[list[Record], list[Record]]:
    """Records to learn from, and to validate on. Raises DataError."""
    data, held = config.data, config.finetune.val_source
    train = read_records(Path(data.source).expanduser(), data.encoding, data.clean)
    if config.finetune.dpo_beta and train[0].kind != "preference":
        raise DataError(f"{train[0].where}: is a {train[0].kind}, but DPO needs prompt, chosen and rejected")
    if not held:
        return split_records(train, data.val_fraction)
    val = read_records(Path(held).expanduser(), data.encoding, data.clean)
    if val[0].kind != train[0].kind:
        raise DataError(f"{val[0].where}: is a {val[0].kind}, but {train[0].where} a {train[0].kind}")
    return train, val


def _record_feed(
    config: RunConfig,
    sides: tuple[list[Record], list[Record]],
    tokenizer: Tokenizer,
    template: Template,
    console: Console,
) -> Feed:
    """Rows of the records. Raises TokenizerError."""
    train, val = sides
    seq_len = config.finetune.seq_len or config.model.max_seq_len
    sha256 = {"train": _digest(train), "val": _digest(val)}
    if tokenizer.eos_id is None and train[0].kind != "chat":
        console.print("the tokenizer has no end of text, so the model will not learn where an answer ends")

    def rows(records: list[Record], answer: str = "") -> list[Row]:
        return [record_row(record, template, tokenizer, answer) for record in records]

    def cut(rows: list[Row]) -> list[Row]:
        return [fit(row, seq_len + 1) for row in rows]

    def feed(learn: list[Any], check: list[Any], make: Callable[..., Batch], size: str, ratio: float | None) -> Feed:
        batches = RowBatches(learn, config.train.batch_size, seq_len, config.train.seed, make)
        return Feed(batches, partial(row_eval_batches, check, seq_len, make=make), ratio, sha256, size)

    chosen, chosen_val = rows(train), rows(val)
    if config.finetune.dpo_beta:
        rejected, rejected_val = rows(train, "rejected"), rows(val, "rejected")
        _tell_losses(chosen + chosen_val + rejected + rejected_val, seq_len + 1, tokenizer, console)
        learn, check = (
            [Pair(*pair) for pair in zip(cut(ours), cut(theirs), strict=True)]
            for ours, theirs in ((chosen, rejected), (chosen_val, rejected_val))
        )
        return feed(learn, check, stack_pairs, f"{len(train):,} pairs to learn and {len(val):,} to validate", None)
    _tell_losses(chosen + chosen_val, seq_len + 1, tokenizer, console)
    learn, check = cut(chosen), cut(chosen_val)
    learned, tokens = sum(int(row.learned.sum()) for row in learn), sum(len(row.ids) for row in learn)
    targets = np.concatenate([row.ids[row.learned] for row in check])
    ratio = sum(len(tokenizer.token_bytes(int(id_))) for id_ in targets) / max(1, len(targets))
    size = f"{len(train):,} records to learn ({learned:,} of {tokens:,} tokens) and {len(val):,} to validate"
    return feed(pack(learn, seq_len + 1) if config.finetune.pack else learn, check, stack, size, ratio or None)


def _fitted(config: RunConfig, given: Mapping[str, Any], feed: Feed, prompt: str) -> RunConfig:
    """The config with what follows from the data where it is not given: a sample's prompt, and a shorter warm-up."""
    train, schedule = config.train, config.schedule
    if prompt and "train.sample_prompt" not in given:
        train = train.model_copy(update={"sample_prompt": prompt})
    steps = Budget(train, feed.batches.steps_per_epoch, feed.batches.tokens_per_step).total_steps
    if steps and "schedule.warmup_steps" not in given:
        schedule = schedule.model_copy(update={"warmup_steps": min(schedule.warmup_steps, steps // 5)})
    return config.model_copy(update={"train": train, "schedule": schedule})


def record_row(record: Record, template: Template, tokenizer: Tokenizer, answer: str = "") -> Row:
    """Ids of a record (with this `answer`), and which of them are learned. Raises TokenizerError naming its line."""
    try:
        return Row(*encode(record.pieces(template, tokenizer.eos_id is not None, answer), tokenizer))
    except TokenizerError as error:
        raise TokenizerError(f"{record.where}: {error}") from None


def _tell_losses(rows: list[Row], capacity: int, tokenizer: Tokenizer, console: Console) -> None:
    """Say what of the records the model will not see."""
    long = sum(len(row.ids) > capacity for row in rows)
    cut = sum(bool(row.learned[: max(0, len(row.ids) - capacity)].any()) for row in rows)
    if long:
        answers = f", {cut:,} of them within an answer" if cut else ""
        console.print(
            f"{long:,} of {len(rows):,} records are longer than a row of {capacity - 1} tokens, so begin later{answers}"
        )
    if tokenizer.unk_id is not None and (unknown := sum(int((row.ids == tokenizer.unk_id).sum()) for row in rows)):
        console.print(f"{unknown:,} characters are unknown to the base's tokenizer; it sees each as <|unk|>")


def _digest(records: list[Record]) -> str:
    return hashlib.sha256("".join(record.digest for record in records).encode()).hexdigest()


def merge_run(run: str | Path, out: str | Path) -> Path:
    """Write the best weights of a run, its adapter made part of them, as an ordinary run directory without a base.

    Raises:
        RunError: `out` is not empty.
        UserError: as `load_run`.
    """
    loaded, out = load_run(run, "cpu"), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RunError(f"{out}: is there already; give --out a new directory")
    state = json.loads((loaded.checkpoint / "state.json").read_text(encoding="utf-8"))
    kept = {key: value for key, value in state.items() if key not in ("lora", "base")}
    step = checkpoint.save(
        out / "checkpoints" / f"step-{loaded.step:08d}", {"model": loaded.model.weights(), "optimizer": {}}, kept
    )
    checkpoint.point(step.parent, "last", step)
    folder = run_folder(loaded.path)
    receipt = read_receipt(folder) | {"merged": str(loaded.checkpoint)}
    write_run_files(out, loaded.config.model_copy(update={"lora": AdapterConfig()}), receipt, "finetune")
    loaded.tokenizer.save(out / "tokenizer.json")
    if (folder / FILE_NAME).is_file():
        load_template(folder).save(out)
    return out
