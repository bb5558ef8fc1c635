"""Write many texts together (continuous batching); each is the same as if it were alone.

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
