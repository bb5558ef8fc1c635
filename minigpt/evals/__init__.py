"""Evaluate models: exact scores over a whole split, and the scores of simpler models (floors) for comparison."""

from minigpt.evals.adapt import Adaptation, adapted
from minigpt.evals.floors import compute_floors, run_floors
from minigpt.evals.harness import evaluate_tasks
from minigpt.evals.ngram import NGram
from minigpt.evals.perplexity import Score, averaged, evaluate
from minigpt.evals.records import RECORD_KEYS, evaluate_records, scores_records
from minigpt.evals.report import REPORT_KEYS, bootstrap, evaluate_run, report
from minigpt.evals.temperature import at_temperature, fit_temperature
from minigpt.evals.token_text import TokenText

__all__ = [
    "RECORD_KEYS",
    "REPORT_KEYS",
    "Adaptation",
    "NGram",
    "Score",
    "TokenText",
    "adapted",
    "at_temperature",
    "averaged",
    "bootstrap",
    "compute_floors",
    "evaluate",
    "evaluate_records",
    "evaluate_run",
    "evaluate_tasks",
    "fit_temperature",
    "report",
    "run_floors",
    "scores_records",
]
