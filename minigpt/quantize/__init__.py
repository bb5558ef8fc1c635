"""Weight-only quantisation as a saved format: a run in, a smaller run out."""

from minigpt.quantize.run import QuantizedRun, quantize_run

__all__ = ["QuantizedRun", "quantize_run"]
