"""The runs on this disk: found, summed up, compared, and repeated."""

from minigpt.runs.compare import Group, cautions, differences, grouped, seeds_together
from minigpt.runs.receipt import receipt_line
from minigpt.runs.record import RunRecord, find_runs, read_run, run_folders
from minigpt.runs.settings import as_flag, essential, flat

__all__ = [
    "Group",
    "RunRecord",
    "as_flag",
    "cautions",
    "differences",
    "essential",
    "find_runs",
    "flat",
    "grouped",
    "read_run",
    "receipt_line",
    "run_folders",
    "seeds_together",
]
