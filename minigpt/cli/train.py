"""Train a model: `minigpt train`."""

import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from minigpt import torchrun
from minigpt.cli.arguments import (
    Name,
    PathText,
    Positional,
    config_from,
    parse,
    recipe_and_data,
    refuse,
    tell_unused,
    with_word,
)
from minigpt.cli.finished import report_run
from minigpt.config import LENGTHS, RunConfig, load_config
from minigpt.console import console, counted, loading, out, out_json, tell
from minigpt.errors import UserError
from minigpt.layout import RunFolder

USAGE = """minigpt train: name a text, or a recipe

  minigpt train my.txt             your text, a folder of texts, or - for a pipe
  minigpt train stories            the built-in stories: no file, no network
  minigpt train shakespeare-char   a recipe; all of them: minigpt config recipes
  minigpt train -h                 the options that people use most"""
USUAL = "5m"
"""Time of a run if the command names no length."""


@dataclass(frozen=True)
class Train:
    """Train a GPT from scratch.

    minigpt train my.txt                   # in five minutes
    minigpt train my.txt --budget 1h
    minigpt train recipes/shakespeare-char-cpu.yaml --budget 10m
    minigpt train runs/my/config.yaml --name again --optimizer.learning-rate 0.03

    The same command continues an interrupted run. Ctrl-C saves and stops.
    """

    COMMON: ClassVar = (
        "name",
        "budget",
        "tiny_run",
        "resume",
        "train.max_minutes",
        "train.max_steps",
        "train.batch_size",
        "model.num_layers",
        "model.embed_dim",
        "model.max_seq_len",
        "model.dropout",
        "tokenizer.kind",
        "tokenizer.vocab_size",
        "optimizer.learning_rate",
        "train.seed",
    )

    what: Positional[tuple[PathText, ...]] = ()
    """A recipe (.yaml or a shipped name), data (file, directory, glob, name, - for standard input), or both."""
    name: Name | None = None
    """Name of the run: runs/NAME."""
    resume: bool = False
    """Continue a run although settings such as its length differ. Without a recipe, settings that you leave out are the
    run's own. A length that you give replaces the old one."""
    tiny_run: bool = False
    """Shrink the recipe to about a minute of CPU, to check that everything works."""
    prepare_only: bool = False
    """Stop once the text is tokenized."""
    budget: str | None = None
    """90s, 10m, 2h or 1e15flops: measure this machine, choose the tokenizer, size, context, batch, rates and steps that
    reach the lowest loss in that time (settings that you give stay as they are), say what loss to expect and when it
    will end, train, and end in time. A text without a recipe or a length gets 5m. The rule: docs/budget.md."""
    dry_run: bool = False
    """With --budget: only print the plan. With --json, print it as one JSON object, in the form of receipt.json."""
    json: bool = False
    """Print one JSON object at the end: run, step, seconds, stop_reason, val_loss, best_loss, best_step, epochs,
    bits_per_byte (of the best checkpoint on the whole validation split; null if it was not scored)."""


def main(argv: list[str], own_process: bool = False) -> int:
    """Run the command. `own_process`: this process was started for it, so the time of its start counts too."""
    began = None if own_process else time.perf_counter()
    command = shlex.join(["minigpt", "train", *argv])
    args, overrides = parse(Train, argv, "train", with_config=True)
    if not args.what and "data.source" not in overrides:
        tell(USAGE)
        return UserError.exit_code
    if budget := args.budget or _usual_budget(args, overrides):
        return _within_budget(args, budget, overrides, began, command)
    if args.prepare_only:
        refuse(args, ("json",), "prints how a run ended, and --prepare-only starts none; use minigpt prepare --json")
    if args.dry_run:
        raise UserError("--dry-run says what --budget would choose; give a --budget such as 10m")
    config, recipe = config_from(args.what, overrides)
    loading()
    from minigpt.runs.data import make_tokenizer, prepare_data
    from minigpt.runs.plan import default_name
    from minigpt.runs.task import FromScratch
    from minigpt.runs.tiny_run import tiny
    from minigpt.runs.train import train

    name = args.name
    if args.tiny_run:  # under a name of its own, since the real run comes later
        config = tiny(config, kept=overrides)
        name = name or f"{default_name(config, recipe)}-tiny"
    elif args.resume:
        config = _of_its_run(config, recipe, name or config.logging.name or default_name(config, recipe), overrides)
    tell_unused(config, recipe, overrides)
    if args.prepare_only:
        prepared = prepare_data(config, make_tokenizer(config))
        counts = {name: counted(split.count, "token") for name, split in prepared.splits.items()}
        console.print(f"{counts['train']} to train on, {counts['val']} to validate", highlight=False)
        out(str(prepared.directory))
        return 0
    run = train(config, name=name, resume=args.resume, recipe=recipe, task=FromScratch({"command": command}))
    return report_run(run, args.json)


def _of_its_run(config: RunConfig, recipe: str | None, name: str, overrides: dict[str, Any]) -> RunConfig:
    """The settings of the recipe, else of the run with this name, changed by the flags.

    A length in the flags replaces those of the recipe or the run.
    """
    run = RunFolder(Path(config.logging.runs_dir) / name)
    if not run.is_run:
        return config
    length = any(overrides.get(length) is not None for length in LENGTHS)
    own = dict.fromkeys(LENGTHS) if length else {}
    return load_config(recipe or run.config, {**own, **overrides, "data.source": config.data.source})


def _usual_budget(args: Train, overrides: dict[str, Any]) -> str | None:
    """USUAL for a text without a recipe or a length; None if the settings say how long the run is."""
    recipe, data = recipe_and_data(args.what)
    length = any(overrides.get(length) is not None for length in LENGTHS)
    other = args.resume or args.tiny_run or args.prepare_only or torchrun.world() > 1
    named = data is not None or "data.source" in overrides
    return None if recipe or length or other or not named else USUAL


def _within_budget(args: Train, budget: str, overrides: dict[str, Any], began: float | None, command: str) -> int:
    """Train within a budget. `began`: when the command began, by time.perf_counter; None if this process was started
    for it.
    """
    flags = {"--resume": args.resume, "--tiny-run": args.tiny_run, "--prepare-only": args.prepare_only}
    if given := [flag for flag, on in flags.items() if on]:
        raise UserError(f"{given[0]}: does not go with --budget; leave one of the two out")
    recipe, data = recipe_and_data(args.what)
    settings = with_word(overrides, "data.source", data)
    loading()
    from minigpt.runs.budget.amount import process_start
    from minigpt.runs.budget.within import plan_within, train_within

    started = process_start() if began is None else began
    if args.dry_run:
        found = plan_within(budget, settings, recipe, started=started)
        out_json(found.report) if args.json else out(found.explain())
        return 0
    run = train_within(budget, settings, recipe, args.name, started=started, command=command)
    return report_run(run, args.json)
