"""Read a run's metrics as arrays, for pictures and comparisons. This needs no matplotlib."""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from minigpt.config import load_config
from minigpt.console import headline, scored_on
from minigpt.errors import RunError
from minigpt.files import parse_json, read_lines
from minigpt.layout import METRICS, RunFolder, no_such_run

Array = npt.NDArray[np.float64]


def read_metrics(run: str | Path) -> dict[str, Array]:
    """Read the metrics of a run: key -> array, all of the same length, sorted by "step"; NaN if a line lacks the key.

    Lines of the same step are merged, and the later value counts: a resumed run writes some steps again. A last line
    that has no line end and cannot be read is still being written; it is ignored.

    Raises:
        RunError: no such run, no metrics in it yet, or a damaged line (the message has its number).
    """
    run = Path(run)
    if not run.is_dir():
        raise no_such_run(run)
    path = RunFolder(run).metrics
    if not path.is_file():
        raise RunError(f"no metrics in {run}: there is no {METRICS}; give the directory of a run that has trained")
    steps: dict[float, dict[str, float]] = {}
    for values in read_lines(path, _numbers):
        steps.setdefault(values["step"], {}).update(values)
    if not steps:
        raise RunError(f"no metrics yet in {path}; wait for the first line, or train the run")
    rows = [steps[step] for step in sorted(steps)]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: np.array([row.get(key, math.nan) for row in rows]) for key in keys}


def _numbers(line: Any) -> dict[str, float]:
    """The numeric entries of one line. Raises ValueError if it is not an object with a number "step"."""
    if not isinstance(line, dict):
        raise ValueError("not a JSON object")
    values = {key: float(value) for key, value in line.items() if isinstance(value, int | float)}
    if "step" not in values:
        raise ValueError('no number "step"')
    return values


def read_floors(run: str | Path, bits: bool = False) -> dict[str, float]:
    """Read the floors in a run's eval.json (written at the run's end, or by `minigpt eval RUN --save`); {} without it.

    Args:
        run: its directory.
        bits: return bits per byte, which do not depend on the tokenizer, instead of nats per token.

    Raises:
        RunError: the file is damaged.
    """
    path = RunFolder(Path(run)).evaluation
    if not path.is_file():
        return {}
    try:
        report = parse_json(path.read_bytes())
        unit = 1 if bits else math.log(2) * report["bytes"] / report["tokens"]  # bits per byte -> nats per token
        return {name: float(level) * unit for name, level in report["floors"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError):
        raise RunError(f"{path}: not a report of minigpt eval; delete it, or write it again with --save") from None


def footnote(runs: Sequence[str | Path]) -> str:
    """Say on what text the validation losses were measured, if it is the same for all runs, else "".

    For one run, add its headline.
    """
    configs = [RunFolder(Path(run)).config for run in runs]
    if not all(config.is_file() for config in configs):
        return ""
    counts = {load_config(config).train.eval_batches for config in configs}
    if len(counts) > 1:
        return ""
    words = f"validation: {scored_on('val', counts.pop())}"
    best = run_headline(runs[0]) if len(runs) == 1 else ""
    return f"{words}.  Best checkpoint: {best}" if best else words


def run_headline(run: str | Path) -> str:
    """The headline of the run's eval.json (`minigpt.console.headline`); "" if it is not about the best checkpoint."""
    try:
        report = parse_json(RunFolder(Path(run)).evaluation.read_bytes())
        stride = None if report["stride"] == report["context"] else report["stride"]
        words = headline(report["bits_per_byte"], report["step"], scored_on(report["split"], stride=stride))
        return words if report["step"] == last_values(run)["best_step"] else ""
    except (OSError, ValueError, KeyError, TypeError, RunError):
        return ""


def combine(runs: Sequence[dict[str, Array]]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Mean and sample standard deviation of several runs' metrics, for the keys that all runs have.

    A key has values at the steps at which all runs have it. If these are few, as for evaluations of runs that are
    limited by time, it has values at the steps of the run that ends first, and the other runs are interpolated
    linearly. For one run the deviation is {}.
    """
    if len(runs) == 1:
        return runs[0], {}
    keys = [key for key in runs[0] if all(key in run for run in runs)]
    known = {key: [run["step"][np.isfinite(run[key])] for run in runs] for key in keys}
    common = functools.reduce(np.intersect1d, known["step"])
    shown = {key: _shown(known[key]) if len(common) else common for key in keys}
    steps = functools.reduce(np.union1d, shown.values())
    rows: dict[str, Array] = {}  # key -> [runs, steps]
    for key in keys:
        counts = all(np.isfinite(run[key]).all() for run in runs)  # a key of every line: step, tokens, seconds
        there = np.isin(steps, shown[key]) | counts
        points = ((at, run[key][np.isfinite(run[key])]) for at, run in zip(known[key], runs, strict=True))
        rows[key] = np.stack([np.where(there, _between(steps, at, values), math.nan) for at, values in points])
    return {key: each.mean(0) for key, each in rows.items()}, {key: each.std(0, ddof=1) for key, each in rows.items()}


def _shown(known: Sequence[Array]) -> Array:
    """The steps at which a key is shown: those that all runs have, or if these are few, those of the run that ends
    first.
    """
    common = functools.reduce(np.intersect1d, known)
    return common if 2 * len(common) >= min(map(len, known)) else min(known, key=lambda steps: float(steps[-1]))


def _between(steps: Array, at: Array, values: Array) -> Array:
    """Values at `steps`, interpolated; NaN outside of `at`."""
    return np.interp(steps, at, values, left=math.nan, right=math.nan) if len(at) else np.full(len(steps), math.nan)


def units_of_losses(runs: Sequence[str | Path]) -> list[str]:
    """What the runs' losses are divided by: "token", "pair" (DPO: two answers), or both."""
    configs = [RunFolder(Path(run)).config for run in runs]
    units = {load_config(config).finetune.loss_unit if config.is_file() else "token" for config in configs}
    return sorted(units, reverse=True)


def count_tokenizers(runs: Sequence[str | Path]) -> int:
    """Count the different tokenizers of runs. Losses per token can only be compared if there is one."""
    files = [RunFolder(Path(run)).tokenizer for run in runs]
    return len({file.read_bytes() for file in files if file.is_file()})


def last_values(run: str | Path) -> dict[str, float | None]:
    """The newest figures of a run: step, loss, val_loss, best_val_loss, best_step. None for those not logged."""
    metrics = read_metrics(run)
    steps = metrics["step"]

    def last(key: str) -> float | None:
        there = metrics.get(key, np.zeros(0))
        there = there[np.isfinite(there)]
        return float(there[-1]) if len(there) else None

    best = None
    losses = metrics.get("val_loss", np.full(len(steps), math.nan))
    able = np.isfinite(losses) & (steps > 0)  # step 0 has no checkpoint
    if able.any():
        best = int(np.argmin(np.where(able, losses, math.inf)))
    return {
        "step": int(steps[-1]),
        "loss": last("loss"),
        "val_loss": last("val_loss"),
        "best_val_loss": None if best is None else float(metrics["val_loss"][best]),
        "best_step": None if best is None else int(steps[best]),
    }


def smooth(values: Array, width: int) -> Array:
    """Mean over a centred window of `width` values (made odd). It is narrower near both ends, so it stays centred.

    smooth([0, 3, 6, 0], 3) -> [0, 3, 3, 0]
    """
    half = np.minimum(max(width, 1) // 2, np.minimum(np.arange(len(values)), np.arange(len(values))[::-1]))
    sums = np.concatenate(([0.0], np.cumsum(values)))
    at = np.arange(len(values))
    return (sums[at + half + 1] - sums[at - half]) / (2 * half + 1)
