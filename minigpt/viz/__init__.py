"""Pictures of training runs."""

from minigpt.viz.metrics import last_values, read_metrics, smooth
from minigpt.viz.plots import plot_runs

__all__ = ["last_values", "plot_runs", "read_metrics", "smooth"]
