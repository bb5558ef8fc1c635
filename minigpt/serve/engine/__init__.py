"""Continuous batching: many texts are written together, and each is what it would be alone.

`loop.py` is the thread, `writer.py` the turns of one model, `batch.py` the keys and values, `choose.py` the tokens.
"""

from minigpt.serve.engine.job import BusyError, Ended, Event, Failed, Job, Read, Score, UnavailableError, Wrote
from minigpt.serve.engine.loop import Calls, Engine, tell_all

__all__ = [
    "BusyError",
    "Calls",
    "Ended",
    "Engine",
    "Event",
    "Failed",
    "Job",
    "Read",
    "Score",
    "UnavailableError",
    "Wrote",
    "tell_all",
]
