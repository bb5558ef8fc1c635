"""What is settled before torch is imported: how its threads wait, and which code MKL runs on AMD's processors.

Whether AMD's processors are faster with the code that MKL keeps for Intel's (`minigpt.mkl`) is measured once for each
processor and torch, and remembered. The products are the same sums in another order: results differ in their last bits.
"""

import importlib.util
import os
import platform
import re
import sys
import time
from importlib import metadata
from pathlib import Path

from minigpt.console import tell
from minigpt.measured import keep, recall
from minigpt.mkl import answer_yes, measure_gain

SWITCH = "MINIGPT_MKL"
"""Environment variable: intel or usual, for MKL's code; unset: what is faster."""
WORTH = 1.05
"""How many times as fast products must be."""


def prepare() -> None:
    """Settle both; too late, and without effect, once torch is imported."""
    if "torch" not in sys.modules:
        choose_products(busy=share_the_cores())


def share_the_cores(load: Path = Path("/proc/loadavg")) -> bool:
    """Where another process computes now, let torch's threads sleep soon while they wait for each other.

    They wait by spinning, which is a sixth to a quarter faster alone and up to ten times slower beside a busy process
    (docs/LOG.md). The variable is read when torch is imported, so it must be set before; one that is set stays.
    Returns whether another process computes.
    """
    if not load.exists():  # not Linux, where OpenMP is another
        return False
    looks = []
    for _ in range(8):
        looks.append(int(load.read_text().split()[3].partition("/")[0]) - 1)  # "0.00 0.01 0.05 2/300 123": 2 run
        time.sleep(0.002)
    busy = sorted(looks)[len(looks) // 2] >= 1
    if busy:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    return busy


def choose_products(busy: bool) -> None:
    """Let MKL run its code for Intel's processors where that is faster; MINIGPT_MKL then says what was chosen.

    Processes that this one starts inherit the choice.
    """
    asked = os.environ.get(SWITCH)
    if asked not in ("intel", "usual"):
        asked = "intel" if gains(busy) else "usual"
    if asked == "intel":
        asked = "intel" if answer_yes() else "usual"
    os.environ[SWITCH] = asked


def gains(busy: bool, facts: Path = Path("/proc/cpuinfo"), torch_folder: Path | None = None) -> bool:
    """Whether MKL is faster so on this processor, as measured before or now (a second).

    Beside busy processes nothing can be measured: it mostly is, so that is assumed, and not remembered.
    """
    processor, torch_folder = amd_processor(facts), torch_folder or _torch_libraries()
    if processor is None or torch_folder is None:
        return False
    known = recall(gain_key(processor))
    if not isinstance(known, float):
        if busy:
            return True
        tell("measuring this processor's matrix products, once")
        known = measure_gain(torch_folder)
        keep(gain_key(processor), known)
    return known >= WORTH


def gain_key(processor: str) -> str:
    """The key of its measurement, which depends on torch's release too."""
    return f"mkl, {processor}, torch {metadata.version('torch')}"


def amd_processor(facts: Path = Path("/proc/cpuinfo")) -> str | None:
    """The name of a processor of AMD's that has AVX2, on Linux; None elsewhere."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not facts.is_file():
        return None
    text = facts.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    return name[1] if name and "AuthenticAMD" in text and " avx2 " in text else None


def _torch_libraries() -> Path | None:
    """Where torch's libraries lie; None if torch is not installed here."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    return folder if folder and (folder / "libtorch_cpu.so").is_file() else None
