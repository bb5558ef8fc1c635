"""Score a finished run: its headline (bits per byte of the best checkpoint on the whole validation split), and the
temperature that fits this split best.
"""

import json
import warnings
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, TypeAdapter
from rich.console import Console

from minigpt.console import printer, progress_bars
from minigpt.data import Prepared
from minigpt.errors import StorageError
from minigpt.evals import evaluate_run
from minigpt.evals.report import REPORT_KEYS, Report
from minigpt.evals.temperature import HIGHEST, LOWEST
from minigpt.files import parse_json, write_text
from minigpt.layout import RunFolder
from minigpt.runs.load import load_run
from minigpt.runtime.device import out_of_memory

LEAST = 4
"""A run is scored if it trained on at least this many tokens per token of the validation split. Training on a token
costs three times as much as scoring it, so the score takes at most a twelfth of the run's time."""


@dataclass(frozen=True)
class FittedTemperature:
    """The content of temperature.json: the temperature with the smallest loss on this split of the run's text, in these
    windows.
    """

    temperature: Annotated[float, Field(ge=LOWEST, le=HIGHEST)]
    step: int
    split: Literal["val"]
    context: int
    stride: int


_FITTED = TypeAdapter(FittedTemperature)


def score_run(path: Path, text: Prepared, trained: int, device: str, console: Console) -> Report | None:
    """Make the report of `minigpt eval RUN`; it is saved in eval.json, where plots find it.

    Args:
        path: the run.
        text: its own token files.
        trained: number of tokens that it has trained on.
        device: where to compute.
        console: prints what is left out.

    Returns:
        None for a run that is too short for its validation split (see `LEAST`), or if memory is too small.
    """
    tell = printer(console)
    if len(text.splits["val"].tokens) * LEAST > trained:
        return None
    try:
        with progress_bars(console) as bar:
            report = evaluate_run(load_run(path, device), prepared=text, progress=partial(bar, "scoring"))
    except (RuntimeError, MemoryError) as error:  # the trained model is in memory too
        if not out_of_memory(error):
            raise
        tell(f"not scored on the whole validation split, since memory is too small; later: minigpt eval {path} --save")
        return None
    try:
        write_text(RunFolder(path).evaluation, json.dumps(report, indent=2) + "\n")
    except StorageError as error:  # the run itself is safe
        tell(str(error))
    return report


def kept_score(path: Path, step: int) -> Report | None:
    """The report in eval.json, if it is the score of the checkpoint of that step."""
    try:
        report: Report = parse_json(RunFolder(path).evaluation.read_bytes())
        mine = (report["step"], report["split"], report["stride"]) == (step, "val", report["context"])
        return report if mine and report.keys() == set(REPORT_KEYS) else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def keep_temperature(path: Path, fitted: FittedTemperature) -> None:
    """Write temperature.json. Raises StorageError."""
    write_text(
        RunFolder.of(path).temperature, json.dumps(asdict(fitted), indent=2) + "\n", "leave --fit-temperature out"
    )


def kept_temperature(path: Path, step: int) -> FittedTemperature | None:
    """The temperature that was fitted for the checkpoint of that step, or None. Warns of a file that cannot be read."""
    file = RunFolder.of(path).temperature
    try:
        fitted = _FITTED.validate_python(parse_json(file.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        warnings.warn(
            f"{file}: damaged, so left out; minigpt eval {path} --fit-temperature makes it again", stacklevel=2
        )
        return None
    return fitted if fitted.step == step else None
