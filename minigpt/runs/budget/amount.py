"""Read a budget: 90s, 10m, 1h30m, or 1e15flops; and find out when the process started."""

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from minigpt.errors import ConfigError

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER = r"\d+(?:\.\d*)?(?:e[+-]?\d+)?"


@dataclass(frozen=True)
class Amount:
    """Seconds of the whole command, or floating-point operations of training; one of the two is set."""

    text: str
    seconds: float | None = None
    flops: float | None = None


def parse_amount(text: str) -> Amount:
    """Read a budget.

    parse_amount("1h30m").seconds -> 5400.0;  parse_amount("1e15flops").flops -> 1e15

    Raises:
        ConfigError: not a number with a unit, or an amount of zero.
    """
    plain = re.sub(r"[\s_]", "", text.lower())
    if found := re.fullmatch(rf"({_NUMBER})flops?", plain):
        amount = Amount(text, flops=float(found[1]))
    elif plain and re.fullmatch(rf"(?:{_NUMBER}[smhd])+", plain):
        amount = Amount(text, seconds=sum(float(n) * _UNITS[u] for n, u in re.findall(rf"({_NUMBER})([smhd])", plain)))
    else:
        raise ConfigError(f"--budget: {text!r} is not a budget; write 90s, 10m, 1h30m or 1e15flops")
    if not 0 < (amount.seconds or amount.flops or 0) < float("inf"):
        raise ConfigError(f"--budget: {text!r} is nothing to train with; write 90s, 10m, 1h30m or 1e15flops")
    return amount


def process_start() -> float:
    """When this process began, by time.perf_counter; now, if there is no /proc to read it from.

    Starting Python and importing takes a second or more. A budget of half a minute has to count this time.
    """
    now, stat = time.perf_counter(), Path("/proc/self/stat")
    if not stat.is_file():
        return now
    ticks = int(stat.read_text(encoding="utf-8").rpartition(")")[2].split()[19])  # field 22: since the machine started
    return now - (time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
