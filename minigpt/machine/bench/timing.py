"""Time several sides (minigpt and other tools) that take turns, and summarise their seconds. A clock can be passed."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import TypedDict, TypeVar

Measured = TypeVar("Measured")
Tell = Callable[[str], None]
"""Shows a line that says what is measured now."""


class SpreadFigures(TypedDict):
    """A `Spread` as a dict, for a report."""

    median: float
    q1: float
    q3: float
    min: float
    max: float


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and extremes of one figure, in its own unit."""

    median: float
    q1: float
    q3: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """The spread of one or more values. Quartiles are interpolated as in numpy: q1 of 1, 2, 3, 4 is 1.75."""
        q1, _, q3 = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else list(values) * 3
        return cls(statistics.median(values), q1, q3, min(values), max(values))

    def figures(self, scale: float = 1.0) -> SpreadFigures:
        """The values as a dict, each times `scale` (1e3: seconds to milliseconds)."""
        median, q1, q3, low, high = (rounded(value * scale) for value in astuple(self))
        return {"median": median, "q1": q1, "q3": q3, "min": low, "max": high}


def rounded(value: float) -> float:
    """Round to six significant digits; no clock here is more precise."""
    return float(f"{value:.6g}")


def stopwatch(job: Callable[[], object], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that the job takes."""
    start = clock()
    job()
    return clock() - start


def alternate(sides: Mapping[str, Callable[[], Measured]], rounds: int, tell: Tell) -> dict[str, list[Measured]]:
    """Measure each side once per round. Returns the results of each side.

    Every other round is in reverse order, so that slow changes (heat, other programs) favour no side.
    """
    results: dict[str, list[Measured]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: -1 if number % 2 else 1]:
            tell(f"round {number + 1} of {rounds}: {name}")
            results[name].append(sides[name]())
    return results


def speed_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """How many times as fast our side is: the median over rounds of their seconds / our seconds.

    Only times of the same round are compared, so a slow round slows both: ([1, 5], [2, 10]) -> 2.0.
    """
    return statistics.median(other / own for own, other in zip(ours, theirs, strict=True))
