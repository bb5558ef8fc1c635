"""Limit fuzz tests (test_fuzz_*) to 10 seconds per example and 2 GB for all of them."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

resource = pytest.importorskip("resource", reason="needs POSIX")

SLOWEST = 10.0  # seconds of one example
MOST = 2e9  # bytes by which a process may grow


def peak() -> int:
    """The largest memory of this process so far, in bytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Watch:
    """Times examples; `end` asserts both limits and says what was measured."""

    def __init__(self) -> None:
        with suppress(OSError):  # make Linux forget the peak of earlier tests; other systems keep it
            Path("/proc/self/clear_refs").write_text("5")
        self.start, self.slowest = peak(), 0.0

    @contextmanager
    def example(self) -> Iterator[None]:
        """Time one example. One that takes too long fails at once."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.slowest = max(self.slowest, time.monotonic() - start)
            assert self.slowest < SLOWEST, f"an example took {self.slowest:.0f} s"

    def end(self, counts: str) -> None:
        """Print the counts with the slowest example and the growth of memory. Fails if it grew too much."""
        grown = peak() - self.start
        print(f"\n{counts}; slowest {self.slowest:.2f} s, memory grew by {grown / 1e6:,.0f} MB")
        assert self.slowest > 0, "no example was watched"
        assert grown < MOST, f"memory grew by {grown / 1e9:.1f} GB"
