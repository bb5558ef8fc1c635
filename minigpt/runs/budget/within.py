"""Train within a budget: prepare the text, measure this machine, choose a run that fits, train until the time is up.

Everything counts: reading the text, measuring, training, the last evaluation and checkpoint. When the trainer starts,
the time that remains, without the time for the work after it, becomes `train.max_minutes`. The schedule follows that
clock, so if the machine becomes slower, the run still ends in time, with fewer steps. A FLOP budget is a number of
steps instead.
"""

import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.console import Console

from minigpt import torchrun
from minigpt.config import LENGTHS, RunConfig, load_config, recipe_settings
from minigpt.config.unused import without_effect, written
from minigpt.console import counted, messages, printer, progress_bars
from minigpt.data import Prepared, open_corpus
from minigpt.errors import ConfigError, RunError
from minigpt.evals.ngram import NGram
from minigpt.evals.token_text import TokenText
from minigpt.layout import RunFolder
from minigpt.model.cost import parameter_table
from minigpt.runs.budget import rule
from minigpt.runs.budget.amount import Amount, parse_amount
from minigpt.runs.budget.law import LAWS, Text
from minigpt.runs.budget.plan import Chooser, Plan
from minigpt.runs.budget.speed import TRUSTED, Speed, known_speed, time_step
from minigpt.runs.data import make_tokenizer, prepare_data
from minigpt.runs.feeds import bytes_per_token, check_lengths
from minigpt.runs.plan import default_name
from minigpt.runs.receipt import read_receipt
from minigpt.runs.resolve import as_computed, resolve_vocabulary, shared_row
from minigpt.runs.task import FromScratch
from minigpt.runs.train import TrainedRun, train
from minigpt.runtime.autotune import COLD, choose
from minigpt.runtime.device import check_runtime, make_runtime
from minigpt.runtime.memory_estimate import memory_of_run
from minigpt.tokenizers import Tokenizer

MEASURING, LONGEST = 0.1, 1.0
"""Measuring may take about this share of a budget, and about this many seconds."""
COMPILING = 0.05
"""The share of a budget that a first compilation may take when train.compile is auto."""
SHORTEST = 2
"""A text must fill a context of at least this length."""
LITTLE = 50_000
"""If a training text has fewer bytes than this, the plan says that they are few."""
FLOOR_BYTES, SCORED_BYTES = 1_000_000, 200_000
"""Bytes of the training text that the 5-gram model is fitted on, and of the validation text that it scores. Both are
taken from all over the text, since its parts may differ much."""
LEAST = 0.1
"""The smallest share of a budget that is used for training, even if reading and measuring took the rest."""
BETWEEN = 0.25
"""The time that `train` needs before its clock begins, as a share of the time that Python and its imports took to
start: a busy machine makes both slow (docs/budget.md)."""
UNSTEADY = 0.15
"""If the number of steps differs from the plan by more than this share, a line at the end says so."""
ERROR = 0.1
"""How far the loss may differ from the prediction, on ordinary text (docs/budget.md)."""


def two_digits(number: float) -> str:
    """two_digits(0.0123) -> "0.012"; two_digits(537.4) -> "540"; two_digits(1208) -> "1,200"."""
    return f"{float(f'{number:.2g}'):,g}"


def clock_time(now: datetime, seconds: float) -> str:
    """What a clock here shows so many seconds after `now`, with the day if it is another: "13:05:09"."""
    then = (now + timedelta(seconds=seconds)).astimezone()  # again, since clocks may change to or from summer time
    return f"{then:%H:%M:%S}" if then.date() == now.date() else f"{then:%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class Budgeted:
    """A run that was planned within a budget.

    Attributes:
        amount: the budget.
        text: what the law knows about the text.
        plan: the chosen run.
        report: what the receipt says about it: asked, promised_seconds, predicted_loss (nats per token),
            predicted_bits_per_byte, steps, tokens, passes, flops, step_seconds, measuring_seconds, five_gram_bits,
            parameters, memory_bytes (about).
        tokenizer: the tokenizer of the text.
        started: when the command began, by time.perf_counter.
        again: seconds of work that `train` will do before its clock begins.
    """

    amount: Amount
    text: Text
    plan: Plan
    report: dict[str, Any]
    tokenizer: Tokenizer
    started: float
    again: float

    @property
    def predictable(self) -> bool:
        """Whether the predicted loss is below ln V, that of a model that knows nothing. False for very few steps."""
        return self.plan.loss < math.log(self.text.vocab_size)

    @property
    def elapsed(self) -> float:
        """Seconds since the command began."""
        return time.perf_counter() - self.started

    def config(self) -> RunConfig:
        """The config to train now: the settings, and a length that ends in time."""
        length: dict[str, Any] = {"max_steps": None}
        if self.amount.seconds:
            after = self.again + self.plan.after_seconds + self.plan.step_seconds / 2
            left = self.amount.seconds - self.elapsed - after
            length["max_minutes"] = max(left, LEAST * self.amount.seconds) / 60
        if self.plan.limited or not self.amount.seconds:
            length["max_steps"] = self.plan.steps
        return self.plan.config.changed(train=length)

    def explain(self) -> str:
        """The choice, its reasons, and what to expect: four lines for the screen, five for a small text."""
        plan, report, text, shape = self.plan, self.report, self.text, self.plan.config.model
        when = clock_time(datetime.now().astimezone(), report["promised_seconds"] - self.elapsed)
        passes, size = two_digits(report["passes"]), text.train_tokens * text.bytes_per_token
        weights, batch = plan.size.parameters / 1e6, plan.config.train.batch_size
        bits, chance = report["predicted_bits_per_byte"], math.log(text.vocab_size)
        more = " (--budget 10m gives it more time)" if (self.amount.seconds or math.inf) < 600 else ""
        regularisation = f", dropout {shape.dropout:g}" if shape.dropout else ""
        regularisation += ", masked inputs" if plan.config.train.masked_inputs else ""
        expected = (
            f"{bits:.2f} bits per byte (loss {plan.loss:.3f}), within {ERROR:.0%} on ordinary text"
            if self.predictable
            else f"little better than chance (loss {chance:.3f}), too few steps for a better prediction"
        )
        lines = [
            f"plan: the lowest loss that {self.amount.text} allow on this machine{more}",
            f"model: {counted(shape.num_layers, 'layer')} of {shape.embed_dim} "
            f"({two_digits(weights)} M weights in them), context {shape.max_seq_len}, {text.vocab_size:,} ids",
            f"about {counted(plan.steps, 'step')} of {two_digits(plan.step_seconds)} s with "
            f"{counted(batch, 'sequence')} each: {passes} {'pass' if passes == '1' else 'passes'} over "
            f"{two_digits(size / 1e6)} MB{regularisation}"
            f"{'; more passes would not help' if plan.limited else ''}",
            f"expected: {expected}; done at {when}",
        ]
        if size < LITTLE:
            lines.append("the text is small: a model memorises it and learns little about writing; 1 MB is a good size")
        return "\n".join(lines)

    def explain_end(self, steps: int) -> str | None:
        """One line if the machine did not keep the measured speed: the loss that the law predicts for the steps that
        were done.
        """
        plan = self.plan
        if abs(steps / plan.steps - 1) <= UNSTEADY:
            return None
        loss = LAWS[self.text.kind].loss(self.text, plan.size.parameters, plan.tokens * steps / plan.steps, steps)
        changed = "slower" if steps < plan.steps else "faster"
        return (
            f"{steps:,} steps where {plan.steps:,} were planned: the machine became {changed} than when it was measured"
            + (f"; for {steps:,} steps the predicted loss is {loss:.3f}" if self.predictable else "")
        )


class _Settings:
    """The person's settings, which win, and the settings chosen to suit them."""

    def __init__(self, recipe: str | None, settings: Mapping[str, Any]):
        if given := [name for name in LENGTHS if settings.get(name) is not None]:
            raise ConfigError(f"{given[0]}: --budget chooses how long to train; give one of the two")
        self.own: dict[str, Any] = recipe_settings(recipe, settings) | dict(settings) | dict.fromkeys(LENGTHS)
        self.width = self._fitting_width()
        width = load_config(recipe, {**self.width, **settings}).model.embed_dim  # reports all mistakes at once
        given = {name for name in ("embed_dim", "num_heads", "num_kv_heads") if f"model.{name}" in self.own}
        self.heads = {"model.num_heads": rule.heads(width)} if given == {"embed_dim"} else {}
        self.written = written(recipe, settings)
        self.tokenizer: dict[str, Any] = {}
        self.ids: dict[str, Any] = {}

    def __call__(self, chosen: Mapping[str, Any]) -> RunConfig:
        """The config with the chosen settings, except where the person has given a value."""
        return load_config(None, {**self.width, **self.tokenizer, **chosen, **self.heads, **self.own, **self.ids})

    def _fitting_width(self) -> dict[str, Any]:
        """If the person gives heads but no width: the smallest width of the rule that they divide, if there is one."""
        heads = self.own.get("model.num_heads")
        if "model.embed_dim" in self.own or not isinstance(heads, int) or heads < 1:
            return {}
        return next(({"model.embed_dim": width} for _, width in rule.LADDER if width % (2 * heads) == 0), {})

    def choose_tokenizer(self, characters: int) -> None:
        """Choose the tokenizer by the text's size, if the person names none.

        The sizes are for byte pairs; a tokenizer of words takes all words.
        """
        if self.own.get("tokenizer.path") is None and self.own.get("tokenizer.kind") != "word":
            self.tokenizer = rule.tokenizer(characters)


def plan_within(
    budget: str,
    settings: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    quiet: bool = False,
    started: float | None = None,
) -> Budgeted:
    """Prepare the text, measure this machine, and choose; nothing is trained.

    plan_within("10m", {"data.source": "my.txt"}).explain()

    Args:
        budget: 90s, 10m, 2h or 1e15flops.
        settings: settings by dotted name, as for `load_config`. They are kept, and the others are chosen to suit them.
        recipe: the same in a file. The budget overrides its length.
        quiet: print nothing.
        started: when the command began (time.perf_counter), if it was before this call.

    Raises:
        ConfigError: not a budget, a length next to it, or settings that no size fits.
        UserError: a mistake in the text, as in `train`.
    """
    if torchrun.world() > 1:
        raise ConfigError("--budget: measures for one process; leave torchrun out, or give --train.max-minutes")
    started = time.perf_counter() if started is None else started
    again = BETWEEN * (time.perf_counter() - started)
    amount, configure = parse_amount(budget), _Settings(recipe, settings or {})
    console, asked = messages(quiet), configure({}).train
    check_runtime(asked.device, asked.precision)
    prepared, tokenizer = _prepare(configure, console)
    text = describe(prepared, tokenizer)
    printer(console)("measuring how fast this machine trains")
    began = time.perf_counter()
    plan = _measure_and_choose(amount, text, configure, started - again, console)
    plan = replace(plan, config=plan.config.changed(model={"vocab_size": tokenizer.vocab_size}))
    measuring = time.perf_counter() - began
    whole = time.perf_counter() - started + again + plan.train_seconds + plan.after_seconds
    report = {
        "asked": {"budget": amount.text, "settings": configure.own},
        "promised_seconds": whole if plan.limited or not amount.seconds else max(whole, amount.seconds),
        "predicted_loss": plan.loss,
        "predicted_bits_per_byte": plan.loss / text.bytes_per_token / math.log(2),
        "steps": plan.steps,
        "tokens": plan.tokens,
        "passes": plan.tokens / text.train_tokens,
        "flops": plan.flops,
        "step_seconds": plan.step_seconds,
        "measuring_seconds": measuring,
        "five_gram_bits": text.five_gram / math.log(2),
        "parameters": parameter_table(plan.config.model)["total"],
        "memory_bytes": memory_of_run(plan.config).total,
    }
    return Budgeted(amount, text, plan, report, tokenizer, started, again)


def _prepare(configure: _Settings, console: Console) -> tuple[Prepared, Tokenizer]:
    """The text as ids, and its tokenizer, which is chosen by the text's size. Raises UserError."""
    config, say = configure({}), printer(console)
    say(f"reading {config.data.source}")
    with progress_bars(console) as progress:
        characters = open_corpus(config.data, progress).survey.chars
        configure.choose_tokenizer(characters)
        config = configure({})
        ids = f", {config.tokenizer.vocab_size:,} ids" if config.tokenizer.kind == "bpe" else ""
        say(f"{counted(characters, 'character')}; tokenizer: {config.tokenizer.kind}{ids}")
        for line in without_effect(configure(rule.LIKELY), configure.written).values():
            say(line)
        tokenizer = make_tokenizer(config, progress)
        prepared = prepare_data(config, tokenizer, progress)
    config = resolve_vocabulary(config, tokenizer)
    configure.ids = {"model.vocab_size": as_computed(config, shared_row(config, prepared)).model.vocab_size}
    given = configure.own.get("model.max_seq_len")
    check_lengths(prepared, given or SHORTEST, "--model.max-seq-len" if given else None)
    return prepared, tokenizer


def describe(prepared: Prepared, tokenizer: Tokenizer) -> Text:
    """What the law needs to know about a text: its sizes, and how well a 5-gram model predicts it (about 0.2 s)."""
    train, val = (prepared.splits[split].tokens for split in ("train", "val"))
    table = TokenText(tokenizer)
    learned, scored = table.spread(train, FLOOR_BYTES), table.spread(val, SCORED_BYTES)
    generated = prepared.meta["source"] == "stories" and not prepared.meta["clean"]
    return Text(
        len(train),
        len(val),
        tokenizer.vocab_size,
        bytes_per_token(prepared, tokenizer),
        NGram.fit(learned, 5).bits(scored) / max(1, len(scored)) * math.log(2),
        "stories" if generated else "text",
    )


def _measure_and_choose(amount: Amount, text: Text, configure: _Settings, started: float, console: Console) -> Plan:
    """Choose a run by the cost of its steps, time it with the kernels that suit it, and choose again."""
    seconds = amount.seconds or math.inf
    limit = min(LONGEST, MEASURING * seconds)
    settings = configure({}).train
    runtime = make_runtime(settings.device, settings.precision)

    def best(speed: Speed, compiled: bool | None = None) -> Plan:
        def settled(chosen: Mapping[str, Any]) -> RunConfig:
            return configure(chosen if compiled is None else {**chosen, "train.compile": "on" if compiled else "off"})

        left = max(seconds - (time.perf_counter() - started), LEAST * seconds)
        return Chooser(text, speed, settled, left, amount.flops or math.inf, bool(compiled)).best()

    speed = known_speed(configure, runtime, text.vocab_size, 0.5 * limit)
    plan = best(speed)
    # compiling takes half a minute: done only in a long run, or if the person asks for it
    compile = settings.compile if settings.compile != "auto" or COMPILING * seconds >= COLD else "off"
    shape, train = plan.config.model, plan.config.train
    passes = plan.steps * train.passes * train.batch_size / train.rows
    choice = choose(shape, runtime, compile, train.rows, passes, console.print)
    trial = plan.config.changed(model={"attention": choice.attention})
    taken = time_step(trial, replace(runtime, compile=choice.compile), 0.3 * limit)
    if not 1 / TRUSTED < taken / speed.step(plan.size, shape.max_seq_len, train.batch_size) < TRUSTED:
        speed = known_speed(configure, runtime, text.vocab_size, 0.5 * limit, again=True)
    factor = taken / speed.step(plan.size, shape.max_seq_len, train.batch_size)
    return best(replace(speed, factor=factor), choice.compile)


def train_within(
    budget: str,
    settings: Mapping[str, Any] | None = None,
    recipe: str | None = None,
    name: str | None = None,
    quiet: bool = False,
    started: float | None = None,
    command: str = "minigpt.train_within(...), called from Python",
) -> TrainedRun:
    """Plan, then train; the same call continues an interrupted run, with its first plan.

    train_within("10m", {"data.source": "my.txt"})

    Args as in `plan_within`; `name` is the run's, `command` goes into its receipt. Raises as `plan_within` and `train`.
    """
    started = time.perf_counter() if started is None else started
    amount, configure = parse_amount(budget), _Settings(recipe, settings or {})
    config = configure({})
    name, derived = name or config.logging.name, default_name(config, recipe)
    asked = {"budget": amount.text, "settings": configure.own}
    if earlier := _find_earlier(Path(config.logging.runs_dir), name, derived, asked):
        task = FromScratch({"command": command})
        known = earlier.relative_to(config.logging.runs_dir).as_posix()  # with its folder: try/2
        shown = {path: value for path, value in configure.own.items() if path.startswith("logging.")}
        return train(load_config(RunFolder(earlier).config, shown), name=known, quiet=quiet, task=task)
    found = plan_within(budget, settings, recipe, quiet, started)
    say = printer(messages(quiet))
    say(found.explain())
    task = FromScratch({"command": command, "budget": found.report})
    run = train(found.config(), name=name, recipe=recipe, quiet=quiet, task=task, tokenizer=found.tokenizer)
    if run.state.stop_reason == "budget used up" and (line := found.explain_end(run.state.step)):
        say(line)
    return run


def _find_earlier(folder: Path, name: str | None, derived: str, asked: Mapping[str, Any]) -> Path | None:
    """The run that the same call started, found by its receipt. Raises RunError if another run has the name."""
    number, path = 1, folder / (name or derived)
    while RunFolder(path).in_use():
        if _asked(path) == json.loads(json.dumps(_trained(asked))):
            return path
        if name:
            raise RunError(f"{path} exists with other settings or another budget; choose a new --name")
        number += 1
        path = folder / f"{derived}-{number}"
    return None


def _asked(path: Path) -> dict[str, Any]:
    """What the person asked for when the run began; {} for a run without a budget."""
    return _trained(read_receipt(path).get("budget", {}).get("asked", {}))


def _trained(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked for, without the settings of logging, which change no weight."""
    settings = {key: value for key, value in asked.get("settings", {}).items() if not key.startswith("logging.")}
    return {**asked, "settings": settings} if asked else {}
