"""Score a text in other ways for `eval`, and print each score under its own name below the headline."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from minigpt.console import Lines, console, progress_bars, scored_on
from minigpt.evals import Adaptation, adapted, at_temperature, averaged, fit_temperature
from minigpt.evals.adapt import LABEL
from minigpt.evals.report import Figures, Report, figures
from minigpt.runs.load import LoadedRun, load_alike
from minigpt.runs.score import FittedTemperature, keep_temperature, kept_temperature

if TYPE_CHECKING:
    from minigpt.data import Prepared


class AtTemperature(Figures):
    """The figures at the fitted temperature, and the split on which it was fitted."""

    temperature: float
    fitted_on: str


class Adapted(Figures):
    """The figures of a model that learned from the text: the method, and the words that are always printed with
    them.
    """

    method: str
    category: str
    rate: float
    cache_tokens: int
    cache_share: float
    cache_sharpness: float


class OfEnsemble(Figures):
    """The figures of the mean of several runs' probabilities, and the names of the runs."""

    runs: list[str]


class ExtraScores(TypedDict):
    """The other scores of a report; None for a score that was neither asked for nor saved."""

    at_temperature: AtTemperature | None
    adapted: Adapted | None
    ensemble: OfEnsemble | None


Rescore = Callable[..., Report]
"""Scores the same text again: rescore("label", scorer=...)."""


def fit(run: LoadedRun, prepared: "Prepared", report: Report, batch_size: int | None) -> None:
    """Find the temperature with the smallest loss of the validation split, and save it with the run.

    Args:
        run, prepared: the run and its own text.
        report: the report of that split; the same windows are used.
        batch_size: windows at a time (default: by memory).
    """
    windows = {"context": report["context"], "stride": report["stride"]}
    tokens = prepared.splits["val"].tokens
    with progress_bars(console) as bar:
        found = fit_temperature(
            run.model, tokens, **windows, batch_size=batch_size, runtime=run.runtime, progress=partial(bar, "fitting")
        )
    keep_temperature(run.path, FittedTemperature(found, report["step"], "val", **windows))


def load_members(
    run: LoadedRun, paths: Sequence[str], context: int | None, device: str, precision: str
) -> list[LoadedRun]:
    """Load the runs that form an ensemble with a run. Raises ConfigError for a run that does not fit."""
    length = context or run.model.config.max_seq_len
    return [load_alike(path, run, length, "--ensemble", "--context", device, precision) for path in paths]


def extra_scores(
    run: LoadedRun, report: Report, rescore: Rescore, how: Adaptation | None, members: Sequence[LoadedRun]
) -> ExtraScores:
    """The other scores of a report's text: at the saved temperature, and those that were asked for."""
    fitted = kept_temperature(run.path, report["step"])
    return {
        "at_temperature": fitted and _at_temperature(fitted, rescore),
        "adapted": how and _adapted(how, rescore),
        "ensemble": _ensemble([run, *members], rescore) if members else None,
    }


def _at_temperature(fitted: FittedTemperature, rescore: Rescore) -> AtTemperature:
    scored = rescore("evaluating at the temperature", scorer=at_temperature(fitted.temperature))
    return {**figures(scored), "temperature": fitted.temperature, "fitted_on": fitted.split}


def _adapted(how: Adaptation, rescore: Rescore) -> Adapted:
    scored = rescore("learning from the text", scorer=adapted(how))
    return {
        **figures(scored),
        "method": how.method,
        "category": LABEL,
        "rate": how.rate,
        "cache_tokens": how.cache_tokens,
        "cache_share": how.cache_share,
        "cache_sharpness": how.cache_sharpness,
    }


def _ensemble(runs: Sequence[LoadedRun], rescore: Rescore) -> OfEnsemble:
    scored = rescore("evaluating the ensemble", scorer=averaged([each.model for each in runs[1:]]))
    return {**figures(scored), "runs": [str(each.path) for each in runs]}


def show_extra_scores(others: Mapping[str, Any]) -> None:
    """Print one line for each score that is not None."""
    screen = Lines(highlight=False)
    if found := others["at_temperature"]:
        what = (
            f"at temperature {found['temperature']:.4f}, fitted on the {scored_on(found['fitted_on']).split(', ')[0]}"
        )
        screen.print(f"{what}: {_scores_text(found)}", markup=False)
    if found := others["adapted"]:
        method = {"dynamic": "dynamic evaluation", "cache": "neural cache", "both": "dynamic evaluation, neural cache"}
        screen.print(f"{found['category']} ({method[found['method']]}): {_scores_text(found)}", markup=False)
    if found := others["ensemble"]:
        screen.print(f"mean probability of {', '.join(found['runs'])}: {_scores_text(found)}", markup=False)


def _scores_text(found: Mapping[str, Any]) -> str:
    words = "" if found["word_perplexity"] is None else f", word perplexity {found['word_perplexity']:,.2f}"
    perplexity = "over 10^300" if found["perplexity"] is None else f"{found['perplexity']:,.2f}"
    return f"loss {found['loss']:.4f}, perplexity {perplexity}, {found['bits_per_byte']:.4f} bits per byte{words}"
