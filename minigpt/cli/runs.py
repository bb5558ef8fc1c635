"""Look at runs: `minigpt runs list | show | diff | compare | receipt | consolidate`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigpt.cli.arguments import PathText, Positional, parse, refuse
from minigpt.cli.tables import show_columns, show_table
from minigpt.console import console, out, out_json, printer, progress_bars
from minigpt.errors import UserError, nearest

if TYPE_CHECKING:
    from minigpt.runs.compare import Group

USAGE = """minigpt runs: the runs on this disk

usage: minigpt runs list|show|diff|compare|receipt|consolidate [...]        each with --help

  minigpt runs list "lr*" --sort minutes
  minigpt runs show runs/my
  minigpt runs diff runs/my runs/my-2
  minigpt runs compare runs/sweep                a sweep's runs, seeds averaged
  minigpt runs receipt runs/my                   one line that repeats the run
  minigpt runs consolidate runs/my               one file of a checkpoint that several processes wrote in parts
"""

Column = Literal["name", "state", "data", "parameters", "steps", "best_val_loss", "bits_per_byte", "minutes"]


@dataclass(frozen=True)
class List:
    """List the runs, also those of sweeps.

    minigpt runs list
    minigpt runs list "shakespeare*" --sort best_val_loss
    """

    pattern: Positional[str] = "*"
    """Names to list, with * and ?; a sweep's name stands for all its runs. Quote it."""
    runs_dir: PathText = PathText("runs")
    """The folder of the runs."""
    sort: Column | None = None
    """Column to sort by, the smallest value first (default: the newest run first)."""
    reverse: bool = False
    """Reverse the order."""
    json: bool = False
    """Print one JSON object: runs (a list of {name, path, started, state, data, parameters, steps, best_val_loss,
    bits_per_byte, minutes}; null if nothing was logged). Bits per byte are those of the best evaluation; started is
    when the run was started, or last continued."""


@dataclass(frozen=True)
class Show:
    """Show one run: its settings, how it ended, what is on the disk.

    minigpt runs show runs/my
    """

    run: Positional[PathText]
    """A run directory."""
    json: bool = False
    """Print one JSON object: the keys of list, and settings (those that are not the defaults), receipt, metrics (the
    last line), sample (the last), checkpoints (a list of {name, bytes}), incidents."""


@dataclass(frozen=True)
class Diff:
    """Show how two runs differ: settings, data, versions, and how they ended.

    minigpt runs diff runs/my runs/my-2
    """

    one: Positional[PathText]
    """A run directory."""
    two: Positional[PathText]
    """Another run directory."""
    json: bool = False
    """Print one JSON object: settings, data, versions, results: each {name: [value of one, value of two]}."""


@dataclass(frozen=True)
class Compare:
    """Compare runs: a table, and their curves in one picture. The table has a column for each run, the best first: its
    results, then the settings that differ. Runs that differ only in their seed are one column, and one curve: the
    mean, with a band.

    minigpt runs compare runs/a runs/b runs/c
    minigpt runs compare runs/sweep --x minutes --out sweep.svg

    The spread, and half of the band, is the sample standard deviation over the seeds. A single run has none. Runs with
    different tokenizers are drawn in bits per byte. For other pictures see minigpt plot.
    """

    runs: Positional[tuple[PathText, ...]]
    """Run directories, or folders of runs such as a sweep's."""
    out: PathText | None = None
    """Picture to write, .png or .svg (default: compare.png next to the first run)."""
    plot: bool = True
    """Do not draw the curves. (Drawing needs the plot extra.)"""
    x: Literal["step", "tokens", "minutes"] = "step"
    """What the picture's horizontal axis counts."""
    json: bool = False
    """Print one JSON object: groups (a list of {runs, seeds, settings, mean, deviation}, the best first; mean and
    deviation have best_val_loss, bits_per_byte and minutes), cautions, plot (a path, or null)."""


@dataclass(frozen=True)
class Receipt:
    """Print one shell line that repeats the run, followed by a comment with the versions and the data's sha256.

    minigpt runs receipt runs/my
    minigpt runs receipt runs/my --flags > repeat.sh
    """

    run: Positional[PathText]
    """A run directory."""
    flags: bool = False
    """Every setting as a flag, instead of the path of the run's config: for a machine that has only the data."""
    json: bool = False
    """Print one JSON object: command."""


@dataclass(frozen=True)
class Consolidate:
    """Turn each checkpoint that several processes wrote in parts into one file (--parallel.sharded-checkpoints true).

    minigpt runs consolidate runs/my

    Every command also reads checkpoints in parts; other programs need one whole model.safetensors.
    """

    run: Positional[PathText]
    """A run directory, or a checkpoint."""
    json: bool = False
    """Print one JSON object: checkpoints (a list of paths)."""


def main(argv: list[str]) -> int:
    """Run the command; the exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        out(USAGE)
        return 0
    actions: dict[str, Any] = {
        "list": (List, _list), "show": (Show, _show), "diff": (Diff, _diff), "compare": (Compare, _compare),
        "receipt": (Receipt, _receipt), "consolidate": (Consolidate, _consolidate),
    }  # fmt: skip
    if argv[0] not in actions:
        raise UserError(f"runs {argv[0]}: no such command; {nearest(argv[0], actions)}")
    kind, act = actions[argv[0]]
    act(parse(kind, argv[1:], f"runs {argv[0]}")[0])
    return 0


def _list(args: List) -> None:
    from minigpt.runs.record import find_runs

    with progress_bars(console) as report:
        found = find_runs(args.runs_dir, args.pattern, printer(console), report)
    rows = [run.summary() for run in found]
    key, backward = args.sort or "started", args.reverse != (args.sort is None)
    known = sorted((row for row in rows if row[key] is not None), key=lambda row: row[key], reverse=backward)
    rows = known + [row for row in rows if row[key] is None]
    if args.json:
        out_json({"runs": rows})
    elif rows:
        show_table(
            ("name", "state", "data", "size", "steps", "best val", "bits/byte", "minutes"),
            [
                (
                    row["name"], row["state"], Path(row["data"]).name, short_count(row["parameters"]),
                    f"{row['steps']:,}", figure(row["best_val_loss"]), figure(row["bits_per_byte"]),
                    figure(row["minutes"], 2),
                )
                for row in rows
            ],
            text=3,
            spare=("data", "minutes", "size", "steps", "state"),
        )  # fmt: skip
    else:
        console.print(f"no run matches {args.pattern} in {args.runs_dir}", markup=False)


def _show(args: Show) -> None:
    from minigpt.runs.record import read_run
    from minigpt.runs.settings import essential

    run = read_run(args.run)
    samples = run.samples
    report = run.summary() | {
        "settings": essential(run.config),
        "receipt": run.receipt,
        "metrics": run.lines[-1] if run.lines else {},
        "sample": samples[-1] if samples else None,
        "checkpoints": [{"name": folder.name, "bytes": _bytes(folder)} for folder in run.checkpoints],
        "incidents": run.incidents,
    }
    if args.json:
        out_json(report)
        return
    receipt, sample = report["receipt"], report["sample"]
    head = {key: report[key] for key in list(run.summary())[:6]} | {"minutes": report["minutes"]}
    titled("run", head | {"started": datetime.fromisoformat(report["started"]).astimezone().strftime("%Y-%m-%d %H:%M")})
    titled("settings that are not the defaults", report["settings"])
    titled("versions", receipt.get("versions", {}))
    titled("data sha256", receipt.get("data", {}).get("sha256", {}))
    titled("last line of metrics", report["metrics"])
    best = {"val_loss": report["best_val_loss"], "bits_per_byte": report["bits_per_byte"], "step": run.best.get("step")}
    titled("best evaluation", best if run.best else {})
    titled("checkpoints", {each["name"]: f"{each['bytes'] / 1e6:,.2f} MB" for each in report["checkpoints"]})
    for incident in report["incidents"]:
        out(f"incident at step {incident['step']}: {incident['what']}; {incident['action']}")
    if sample:
        out(f"sample of step {sample['step']}\n{sample['prompt']}{sample['text']}\n")


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _diff(args: Diff) -> None:
    from minigpt.runs.compare import differences
    from minigpt.runs.record import read_run

    one, two = read_run(args.one), read_run(args.two)

    def pairs(ours: dict[str, Any], theirs: dict[str, Any], same: bool = False) -> dict[str, tuple[Any, Any]]:
        keys = dict.fromkeys([*ours, *theirs])
        return {key: (ours.get(key), theirs.get(key)) for key in keys if same or ours.get(key) != theirs.get(key)}

    results = ("state", "parameters", "steps", "best_val_loss", "bits_per_byte", "minutes")
    (ours, our_data), (theirs, their_data) = (
        (run.summary(), run.receipt.get("data", {}).get("sha256", {})) for run in (one, two)
    )
    report = {
        "settings": differences(one, two),
        "data": pairs(our_data, their_data),
        "versions": pairs(one.receipt.get("versions", {}), two.receipt.get("versions", {})),
        "results": pairs({key: ours[key] for key in results}, {key: theirs[key] for key in results}, same=True),
    }
    if args.json:
        out_json(report)
        return
    rows = [
        (part, name, plain(pair[0]), plain(pair[1])) for part, found in report.items() for name, pair in found.items()
    ]
    show_table(("", "", args.one, args.two), rows, text=4, spare=("",))


def _compare(args: Compare) -> None:
    from minigpt.runs.compare import cautions, grouped
    from minigpt.runs.record import read_run, readable, run_folders

    if not args.plot:
        refuse(args, ("out", "x"), "is for the picture; leave it or --no-plot out")
    runs = [read_run(folder) for folder in readable(run_folders(args.runs), printer(console))]
    if len(runs) < 2:
        raise UserError("name two runs or more, or a folder of them, for example: minigpt runs compare runs/sweep")
    groups, warned, picture = grouped(runs), cautions(runs), None
    curves = [[run.path for run in group.runs if run.lines] for group in groups]
    if args.plot and any(curves):
        from minigpt.explanation import count_tokenizers, plot_runs

        drawn, first = [paths for paths in curves if paths], next(run.path for run in runs if run.lines)
        what = ("bpb",) if count_tokenizers([run.path for run in runs]) > 1 else ("loss", "perplexity")
        try:
            picture = str(plot_runs(drawn, args.out or first.parent / "compare.png", x=args.x, what=what))
        except UserError as error:
            if args.out:
                raise
            console.print(f"no plot: {error}", markup=False)
    for caution in warned:
        console.print(f"caution: {caution}", markup=False)
    if args.json:
        out_json({"groups": groups_json(groups), "cautions": warned, "plot": picture})
        return
    show_groups(groups)
    if picture:
        out(picture)


def _receipt(args: Receipt) -> None:
    from minigpt.runs.record import read_run
    from minigpt.runs.repeat import receipt_line

    line = receipt_line(read_run(args.run), args.flags)
    if args.json:
        out_json({"command": line})
    else:
        out(line)


def _consolidate(args: Consolidate) -> None:
    from minigpt.runs.consolidate import consolidate

    done = [str(path) for path in consolidate(args.run)]
    if args.json:
        out_json({"checkpoints": done})
    else:
        out("\n".join(done))


def groups_json(groups: "Sequence[Group]") -> list[dict[str, Any]]:
    """The groups, as values for JSON."""
    return [
        {
            "runs": [str(run.path) for run in group.runs],
            "seeds": group.seeds,
            "settings": group.settings,
            "mean": group.mean,
            "deviation": group.deviation,
        }
        for group in groups
    ]


def show_groups(groups: "Sequence[Group]") -> None:
    """Print a table of the groups, the best first: a column for each, results first, then the settings that differ."""
    figures = (("best val", "best_val_loss", 4), ("bits/byte", "bits_per_byte", 4), ("minutes", "minutes", 2))
    rows = [(title, *(spread(group, key, digits) for group in groups)) for title, key, digits in figures]
    if any(len(group.runs) > 1 for group in groups):
        rows.append(("seeds", *(str(len(group.runs)) for group in groups)))
    for path in groups[0].settings if groups else ():
        rows.append((path, *(plain(group.settings[path]) for group in groups)))
    show_columns(("", *map(group_name, groups)), rows)


def group_name(group: "Group") -> str:
    """A name for the group: my, or: my and 2 more."""
    name, more = group.runs[0].name, len(group.runs) - 1
    return f"{name} and {more} more" if more else name


def titled(title: str, values: dict[str, Any]) -> None:
    """Print a heading, and a line for each value; nothing if there are no values."""
    if values:
        width = max(map(len, values))
        out("\n".join([title, *(f"  {name:<{width}}  {plain(value)}" for name, value in values.items())]) + "\n")


def plain(value: Any) -> str:
    if isinstance(value, str):
        return value if value.isprintable() else repr(value)
    return f"{value:g}" if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def figure(value: float | None, digits: int = 4) -> str:
    """1.2346, or -."""
    return "-" if value is None else f"{value:.{digits}f}"


def spread(group: "Group", key: str, digits: int = 4) -> str:
    """1.2346 ± 0.0012: the mean of a figure over the seeds, and its spread if there is one."""
    mean, deviation = figure(group.mean[key], digits), group.deviation[key]
    return mean if deviation is None else f"{mean} ± {figure(deviation, digits)}"


def short_count(number: int | None) -> str:
    """812,345 -> 0.81M; 12,345 -> 12.3k."""
    if number is None:
        return "-"
    return f"{number / 1e6:.2f}M" if number >= 1e5 else f"{number / 1e3:.1f}k"
