"""Define the result of one probe, and how a probe runs a program."""

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from minigpt.errors import first_line


@dataclass(frozen=True)
class Check:
    """What one probe found.

    Args:
        name: what the probe tests.
        ok: True: works; False: is required and does not work; None: is optional and not available.
        detail: the result in words.
        advice: what to do, in one line; "" if nothing.
        figures: the numbers, for --json.
        seconds: how long the probe took.
    """

    name: str
    ok: bool | None
    detail: str
    advice: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def reason(error: BaseException) -> str:
    """Describe an exception in one short line: its type and the first line of its message."""
    name, line = type(error).__name__, first_line(error).strip()
    return f"{name}: {line[:160]}" if line != name else name


def output_of(
    words: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program and collect its output, whatever its encoding. Raises OSError, subprocess.TimeoutExpired."""
    return subprocess.run(
        words, capture_output=True, encoding="utf-8", errors="replace", timeout=seconds, env=environment, check=False
    )
