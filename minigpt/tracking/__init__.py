"""A run's metrics in other tools, beside metrics.jsonl: Weights & Biases, TensorBoard, Trackio, MLflow."""

from minigpt.tracking.hook import Tracking
from minigpt.tracking.tools import Tracker, make_tracker

__all__ = ["Tracker", "Tracking", "make_tracker"]
