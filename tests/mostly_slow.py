"""Let a test of many cases run some of them by default, and all of them in the slow suite."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], fast: Collection[int] = (0,)) -> list[Any]:
    """The cases for `parametrize`; all but those at the places `fast` are slow. A tuple is one case of several values.

    mostly_slow([0.0, 0.9])                        runs 0.0 by default
    mostly_slow([("a", 1), ("b", 2)], fast=[1])    runs ("b", 2) by default
    """
    marks = pytest.mark.slow
    values = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*value, marks=() if place in fast else marks) for place, value in enumerate(values)]
