"""The budget dial: which run fits into ten minutes here, and what loss to expect of it. The rule: docs/budget.md."""

from minigpt.runs.budget.amount import Amount, parse_amount, process_start
from minigpt.runs.budget.law import LAWS, Law, Text
from minigpt.runs.budget.plan import Chooser, Configure, Plan
from minigpt.runs.budget.rule import Size
from minigpt.runs.budget.speed import Speed, fit_speed, measure_speed, time_step

__all__ = [
    "LAWS",
    "Amount",
    "Chooser",
    "Configure",
    "Law",
    "Plan",
    "Size",
    "Speed",
    "Text",
    "fit_speed",
    "measure_speed",
    "parse_amount",
    "process_start",
    "time_step",
]
