"""Print the results of `eval --tasks`: a table with a line for each figure of each task."""

import logging
from collections.abc import Mapping
from functools import partial
from typing import Any

from minigpt.cli.tables import show_table
from minigpt.console import console, out, out_json, progress_bars


def report_tasks(run: Any, name: str, tasks: str, json: bool, **settings: Any) -> None:
    """Evaluate a loaded run on tasks, and print the results; the other arguments are words and flags of `eval`."""
    from minigpt.evals import evaluate_tasks

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns about every default that a task leaves unset
    with progress_bars(console) as bar:
        bar("evaluating", 0, None)
        named = [each.strip() for each in tasks.split(",") if each.strip()]
        report = evaluate_tasks(run, named, progress=partial(bar, "evaluating"), **settings)
    if json:
        out_json(report)
        return
    out(f"{name} (step {report['step']:,}), lm-evaluation-harness {report['lm_eval']}")
    out("")
    show_table(("task", "metric", "filter", "shots", "documents", "value", "±"), rows(report), 3, ("filter", "shots"))


def rows(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The lines of the table. ± is the harness' standard error; a group counts the documents of its tasks."""
    out = []
    for kind in ("groups", "results"):
        for task, figures in report.get(kind, {}).items():
            if kind == "results" and task in report.get("groups", {}):
                continue
            shots = str(report["n-shot"].get(task, ""))
            count = report["n-samples"].get(task, {}).get("effective")
            for key, value in figures.items():
                metric, comma, rule = key.partition(",")
                if not comma or metric.endswith("_stderr") or not isinstance(value, int | float):
                    continue
                error = figures.get(f"{metric}_stderr,{rule}")
                spread = f"{error:.4f}" if isinstance(error, float) else ""
                documents = "" if count is None else f"{count:,}"
                out.append((task, metric, "" if rule == "none" else rule, shots, documents, f"{value:,.4f}", spread))
    return out
