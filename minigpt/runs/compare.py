"""Compare runs: what differs, what a seed changes, and which figures cannot be compared."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.layout import RunFolder
from minigpt.runs.record import RunRecord, read_run
from minigpt.runs.settings import Settings, flat

_SEED = "train.seed"
FIGURES = ("best_val_loss", "bits_per_byte", "minutes")


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seed; of a budget, runs for which the same was asked but for the seed. A merged or
    quantised copy is not in the group of its run.

    settings: the settings in which the groups differ; each group has those of its first run.
    mean, deviation: for each of FIGURES, the mean and the sample standard deviation (None for one run); both are None
    if a run has no such figure.
    """

    runs: tuple[RunRecord, ...]
    settings: dict[str, Any]
    mean: dict[str, float | None]
    deviation: dict[str, float | None]

    @property
    def seeds(self) -> list[int]:
        """The seeds of its runs."""
        return [run.config.train.seed for run in self.runs]


def grouped(runs: Sequence[RunRecord]) -> list[Group]:
    """Group the runs by their settings, without the seed; the best group comes first, by `ranking`."""
    by_settings: dict[str, list[RunRecord]] = {}
    for run in runs:
        by_settings.setdefault(_key(run), []).append(run)
    tables = [_without_seed(flat(members[0].config)) for members in by_settings.values()]
    varied = _varied(tables)
    groups = []
    for settings, members in zip(tables, by_settings.values(), strict=True):
        rows = [run.summary() for run in members]
        mean, deviation = {}, {}
        for figure in FIGURES:
            values = [row[figure] for row in rows if row[figure] is not None]
            whole = len(values) == len(rows)
            mean[figure] = statistics.fmean(values) if whole else None
            deviation[figure] = statistics.stdev(values) if whole and len(values) > 1 else None
        members.sort(key=lambda run: run.config.train.seed)
        groups.append(Group(tuple(members), {path: settings[path] for path in varied}, mean, deviation))
    figure = ranking(group.mean for group in groups)
    return sorted(groups, key=lambda group: _order(group.mean[figure]))


def ranking(rows: Iterable[Mapping[str, Any]]) -> str:
    """The figure by which the best of these runs is found: bits per byte, since tokenizers may differ; the validation
    loss if a run has a loss but no bits per byte, as with preferences.
    """
    whole = all(row["bits_per_byte"] is not None or row["best_val_loss"] is None for row in rows)
    return "bits_per_byte" if whole else "best_val_loss"


def seeds_together(paths: Sequence[str | Path]) -> list[list[Path]]:
    """Group run directories that differ only in their seed, in their order, as `explain.plot_runs` takes them.

    A folder without config.yaml is a group of its own.
    """
    groups: dict[str, list[Path]] = {}
    for path in map(Path, paths):
        known = RunFolder(path).is_run
        groups.setdefault(_key(read_run(path)) if known else str(path), []).append(path)
    return list(groups.values())


def differences(one: RunRecord, two: RunRecord) -> dict[str, tuple[Any, Any]]:
    """Settings that differ, by dotted path, with both values."""
    ours, theirs = flat(one.config), flat(two.config)
    return {path: (ours[path], theirs[path]) for path in ours if ours[path] != theirs[path]}


def cautions(runs: Sequence[RunRecord]) -> list[str]:
    """Reasons why the runs' figures should not be compared; [] if they can be."""
    tokenizers = {json.dumps(run.tokenizer, sort_keys=True) for run in runs}
    texts = {run.receipt.get("data", {}).get("sha256", {}).get("val", run.name) for run in runs}
    if len(texts) > 1:
        return [f"the runs were validated on {len(texts)} texts: neither losses nor bits per byte can be compared"]
    if len(tokenizers) > 1:
        return [f"the runs have {len(tokenizers)} tokenizers: losses per token cannot be compared, bits per byte can"]
    return []


def _key(run: RunRecord) -> str:
    settings = flat(run.config)
    if asked := run.receipt.get("budget", {}).get("asked"):  # its other settings depend on the machine's speed
        settings = {"budget": asked["budget"], **asked["settings"]}
    if made := run.receipt.get("merged") or (run.saved and run.saved.quantization):
        settings["made from"] = made  # a run's copy has its settings, but not its figures
    return json.dumps(_without_seed(settings), sort_keys=True)


def _without_seed(settings: Settings) -> Settings:
    """The settings that make a group: all except the seed and those that only change what is written or printed."""
    return {path: value for path, value in settings.items() if path != _SEED and not path.startswith("logging.")}


def _varied(settings: list[dict[str, Any]]) -> list[str]:
    """The paths whose values are not all equal."""
    return [path for path in settings[0] if len({json.dumps(each[path]) for each in settings}) > 1] if settings else []


def _order(value: float | None) -> float:
    return float("inf") if value is None else value
