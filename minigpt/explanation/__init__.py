"""Draw training runs and texts, and record and draw what happens inside a model."""

from typing import TYPE_CHECKING, Any

from minigpt.explanation.canvas import drawable
from minigpt.explanation.data_plots import draw_text, draw_tokenizer, draw_tokenizers
from minigpt.explanation.metrics import count_tokenizers, last_values, read_metrics, smooth
from minigpt.explanation.run_plots import plot_runs
from minigpt.explanation.scaling import draw_scaling, measure_scaling

if TYPE_CHECKING:
    from minigpt.explanation.analysis import explain
    from minigpt.explanation.heads import measure_heads
    from minigpt.explanation.recording import record

__all__ = [
    "count_tokenizers",
    "draw_scaling",
    "draw_text",
    "draw_tokenizer",
    "draw_tokenizers",
    "drawable",
    "explain",
    "last_values",
    "measure_heads",
    "measure_scaling",
    "plot_runs",
    "read_metrics",
    "record",
    "smooth",
]


def __getattr__(name: str) -> Any:
    """Import the functions that need torch at first use, since plotting does not need torch."""
    if name == "explain":
        from minigpt.explanation.analysis import explain as found
    elif name == "measure_heads":
        from minigpt.explanation.heads import measure_heads as found
    elif name == "record":
        from minigpt.explanation.recording import record as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
