"""Train with every combination of some values: `minigpt sweep`."""

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from minigpt import torchrun
from minigpt.cli.arguments import Name, PathText, Positional, parse, recipe_and_data, with_word
from minigpt.cli.runs import figure, group_name, groups_json, show_groups, spread
from minigpt.cli.tables import show_line, show_table
from minigpt.config import LENGTHS, RunConfig, find_recipe, flag_texts, flag_value, load_config, parse_yaml
from minigpt.console import LiveLine, console, counted, out, out_json, tell
from minigpt.errors import ConfigError, UserError
from minigpt.layout import CHECKPOINTS, CONFIG, MANIFEST, is_pointer

if TYPE_CHECKING:
    from minigpt.runs.compare import Group
    from minigpt.runs.sweep import Progress, Sweep


@dataclass(frozen=True)
class SweepArgs:
    """Train with every combination of the given values: several values of one setting are separated by commas.

    minigpt sweep recipe.yaml --optimizer.learning-rate 0.01,0.02,0.04 --train.seed 1,2,3
    minigpt sweep my.txt --model.num-layers 2,4 --train.max-steps 500 --devices cuda:0,cuda:1
    minigpt sweep runs/my questions.jsonl --lora.rank 4,16
    minigpt sweep my.txt --data.clean "[nfc,lower],[]" --train.sample-prompt '"Oh, "'

    A comma inside [] or quotes does not separate values: a list, or a quoted text with a comma, is one value. Settings
    of logging are not swept. Each run is a process of its own and is written to runs/SWEEP, under a name that contains
    its values; NAME.log has its output.

    The same command continues an interrupted sweep: finished runs are kept, an unfinished run continues, a failed run
    is tried again. If a run fails, the sweep continues; the exit code is then 1. Ctrl-C saves and stops.
    """

    COMMON: ClassVar = (
        "name",
        "budget",
        "tiny_run",
        "devices",
        "dry_run",
        "json",
        "train.seed",
        "train.max_steps",
        "train.max_minutes",
        "train.batch_size",
        "optimizer.learning_rate",
        "model.num_layers",
        "model.embed_dim",
        "model.dropout",
        "lora.rank",
    )

    what: Positional[tuple[PathText, ...]] = ()
    """As in train: a recipe, data, or both. As in finetune: a run, checkpoint or Hugging Face directory, and data."""
    name: Name | None = None
    """Name of the sweep: runs/NAME (default: from the recipe or the data, with -sweep)."""
    devices: str | None = None
    """Devices to use at once, one run on each: cuda:0,cuda:1, or cpu,cpu (default: one run after another)."""
    dry_run: bool = False
    """List what would run, and stop."""
    budget: str | None = None
    """Budget of each run, as --budget of train: 90s, 10m, 2h or 1e15flops."""
    tiny_run: bool = False
    """Shrink every run to about a minute of CPU, as --tiny-run of train, to check that the sweep works."""
    json: bool = False
    """Print one JSON object: sweep, runs (a list of {name, state, error, settings, and the figures of runs list}, the
    best first), groups (as runs compare). With --dry-run: sweep, runs (a list of {name, state, command})."""


def main(argv: list[str]) -> int:
    """Run the command."""
    if {"-h", "--help"} & set(argv):
        parse(SweepArgs, [word for word in argv if "." not in word], "sweep", with_config=True)
    if torchrun.world() > 1:
        raise UserError("a sweep starts each run as a process of its own; leave torchrun out, and give --devices")
    grid, fixed, rest = split_grid(argv)
    args, _ = parse(SweepArgs, rest, "sweep", with_config=True)
    devices = args.devices.split(",") if args.devices else [None]
    if args.devices and "train.device" in grid.keys() | fixed.keys():
        raise UserError("--devices chooses where runs go; leave --train.device out")
    flags = _flags(args, grid.keys() | fixed.keys())
    sweep = _plan(args, grid, fixed, flags)
    from minigpt.runs.sweep import Progress, check_devices, run_sweep

    check_devices([device for device in devices if device is not None])
    if args.dry_run:
        return _dry_run(sweep, Progress(sweep), args.json)
    with LiveLine(console) as live:
        progress, stopped = run_sweep(sweep, devices, tell, live.show)
    _report(sweep, progress, args.json)
    if stopped:
        tell("stopped; the same command continues")
        return 128 + stopped
    return int("failed" in progress.states.values())


def split_grid(argv: list[str]) -> tuple[dict[str, list[Any]], dict[str, Any], list[str]]:
    """Take the config flags out of a command line, and separate the flags with several values.

    split_grid(["my.txt", "--train.seed", "1,2", "--model.bias=true,false", "--data.clean", "[nfc,lower]"])
        -> ({"train.seed": [1, 2], "model.bias": [True, False]}, {"data.clean": ["nfc", "lower"]}, ["my.txt"])

    Raises ConfigError for a flag without a value, an empty value or one that is given twice.
    """
    grid: dict[str, list[Any]] = {}
    fixed: dict[str, Any] = {}
    problems: list[str] = []
    flags, rest = flag_texts(argv)
    for flag, path, text in flags:
        parts = [text] if path.startswith("logging.") else at_commas(text)
        values = [_value(flag, path, part) for part in parts]
        for earlier in (grid, fixed):  # of a flag that is given twice, the last one counts
            earlier.pop(path, None)
        if len(parts) == 1:
            fixed[path] = values[0]
            continue
        grid[path] = values
        if "" in parts:
            problems.append(f"{path}: an empty value between commas in {text!r}")
        problems += [f"{path}: {value!r} is given twice" for value in _repeated(values)]
    if problems:
        raise ConfigError(problems)
    return grid, fixed, rest


def at_commas(text: str) -> list[str]:
    """at_commas('a,[b,c],"d,e"') -> ["a", "[b,c]", '"d,e"']: split at commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in "\"'" and not parts[-1]:  # an apostrophe within a word does not open a quote
            quote = char if char in text[place + 1 :] else ""
        else:
            depth += (char in "[{") - (char in "]}")
        if char == "," and not quote and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def _value(flag: str, path: str, part: str) -> Any:
    """One value, read as a flag's value; a quoted text loses its quotes."""
    quoted = "," in part and part[0] == part[-1] and part[0] in "\"'"
    return parse_yaml(part, flag) if quoted else flag_value(flag, path, part)


def _repeated(values: list[Any]) -> list[Any]:
    return [value for place, value in enumerate(values) if value in values[:place]]


def _flags(args: SweepArgs, given: Iterable[str]) -> tuple[str, ...]:
    """Flags that every run's command gets in addition to its settings. Raises UserError."""
    if args.budget is None:
        return ("--tiny-run",) if args.tiny_run else ()
    if args.tiny_run:
        raise UserError("--tiny-run: does not go with --budget; leave one of the two out")
    from minigpt.runs.budget.amount import parse_amount

    if lengths := [name for name in LENGTHS if name in given]:
        raise UserError(f"{lengths[0]}: --budget chooses how long to train; give one of the two")
    return ("--budget", parse_amount(args.budget).text)


def _plan(args: SweepArgs, grid: dict[str, list[Any]], fixed: dict[str, Any], flags: tuple[str, ...]) -> "Sweep":
    """Decide what to run. Raises ConfigError with every mistake."""
    if not grid:
        raise UserError("nothing to sweep; give a setting several values, such as --optimizer.learning-rate 0.01,0.02")
    if "logging.name" in fixed:
        raise UserError("logging.name: a sweep's runs are named by their values; name the sweep itself with --name")
    if "-" in args.what:
        raise UserError("-: standard input can be read once only; put the text in a file")
    recipe = next((word for word in args.what if word.endswith((".yaml", ".yml"))), None)
    words: list[str] = [word for word in args.what if word != recipe]
    if len(words) > 2:
        raise UserError(f"{words[2]}: one word too many; quote a glob or a path with spaces; put files in a folder")
    base = words[0] if words and _is_model(Path(words[0])) else None
    if len(words) == 2 and not Path(words[0]).exists() and _is_model(Path("runs", words[0])):  # as in finetune
        words[0] = base = str(Path("runs", words[0]))
    path = str(find_recipe(recipe)) if recipe else None
    if not base and path:
        base = load_config(path).finetune.base
    from minigpt.runs.plan import default_name
    from minigpt.runs.sweep import plan_sweep, resolver, tuning_resolver

    own: dict[str, Any] = {}
    if base:
        own |= zip(("finetune.base", "data.source"), words, strict=False)
        resolve = tuning_resolver(base, path)
    else:
        recipe, data = recipe_and_data(args.what)
        path = str(find_recipe(recipe)) if recipe else None
        own |= {} if data is None else {"data.source": data}
        resolve = resolver(path)
        if not args.what and "data.source" not in grid.keys() | fixed.keys():
            raise UserError("name a text or a recipe, for example: minigpt sweep my.txt --train.seed 1,2")
        # if it has only a text, each run would make its own plan
        if not (recipe or flags or set(LENGTHS) & {*grid, *fixed}):
            fixed = {**fixed, "train.max_steps": RunConfig().train.max_steps}
    if base and flags:
        raise UserError(f"{flags[0]}: is for training from scratch; leave out this flag or the model")
    for setting, word in own.items():
        with_word(fixed | grid, setting, word)
    stem = default_name(load_config(path, own), path)
    return plan_sweep(
        "finetune" if base else "train", args.what, fixed, grid, lambda given: resolve({**own, **given}), args.name,
        f"{stem}-tiny-sweep" if args.tiny_run else f"{stem}-sweep", flags,
    )  # fmt: skip


def _is_model(path: Path) -> bool:
    """Whether finetune can start from it: a run, a checkpoint, its best or last file, or a Hugging Face directory."""
    inside = any((path / name).is_file() for name in (CONFIG, MANIFEST, "config.json"))
    return inside or (is_pointer(path) and path.parent.name == CHECKPOINTS)


def _dry_run(sweep: "Sweep", progress: "Progress", json: bool) -> int:
    rows = [
        {"name": name, "state": state, "command": f"minigpt {shlex.join(sweep.argv(name))}"}
        for name, state in progress.states.items()
    ]
    if json:
        out_json({"sweep": str(sweep.path), "runs": rows})
        return 0
    out(f"{sweep.path}: {counted(len(rows), 'run')}, {sum(row['state'] == 'finished' for row in rows)} finished")
    for row in rows:
        out(f"\n{row['name']} ({row['state']})\n  {row['command']}")
    return 0


def _report(sweep: "Sweep", progress: "Progress", json: bool) -> None:
    """Print the table of the runs, the best first; then, if seeds were swept, the means over the seeds."""
    from minigpt.runs.compare import grouped, ranking

    records = progress.records()
    figures = {run.name: run.summary() for run in records}
    rows = [
        {"best_val_loss": None, "bits_per_byte": None, "steps": 0, "minutes": 0.0, **figures.get(name, {}),
         "name": name, "state": state, "error": progress.errors.get(name), "settings": sweep.trials[name]}
        for name, state in progress.states.items()
    ]  # fmt: skip
    by = ranking(rows)
    rows.sort(key=lambda row: (row["state"] == "failed", row[by] is None, row[by] or 0.0))
    groups = grouped([run for run in records if progress.states[run.name] == "finished"])
    if json:
        out_json({"sweep": str(sweep.path), "runs": rows, "groups": groups_json(groups)})
        return
    show_table(
        ("run", "state", "steps", "best val", "bits/byte", "minutes"),
        [
            (row["name"], row["state"], f"{row['steps']:,}", figure(row["best_val_loss"]),
             figure(row["bits_per_byte"]), figure(row["minutes"], 2))
            for row in rows
        ],
        text=2, spare=("minutes", "steps", "state"),
    )  # fmt: skip
    if "train.seed" in sweep.grid and groups:
        out("")
        show_groups(groups)
    out(f"\n{sweep.path}")
    if groups:
        show_line(f"best: {_best(sweep, groups[0])}", indent=6)


def _best(sweep: "Sweep", group: "Group") -> str:
    """--optimizer.learning-rate=0.003: best val 1.4321 (2.066 bits/byte)."""
    from minigpt.runs.settings import as_flag

    settings = {path: value for path, value in sweep.trials[group.runs[0].name].items() if path != "train.seed"}
    what = shlex.join("=".join(as_flag(path, value)) for path, value in settings.items()) or group_name(group)
    bits = "" if group.mean["bits_per_byte"] is None else f" ({spread(group, 'bits_per_byte')} bits/byte)"
    return f"{what}: best val {spread(group, 'best_val_loss')}{bits}"
