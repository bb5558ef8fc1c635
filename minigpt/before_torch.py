"""Set what must be set before torch is imported: how its threads wait, and which code MKL runs on AMD's processors.

MKL has code for Intel's processors that may also be faster on AMD's (`minigpt.mkl`). This is measured once for each
processor and version of torch, and stored. Intel's code adds numbers in another order, so the last bits of results
differ.
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
from minigpt.mkl import load_stub_library, measure_gain

SWITCH = "MINIGPT_MKL"
"""Environment variable that chooses the code of MKL: intel or usual. If it is not set: the faster one."""
WORTH = 1.05
"""Intel's code is used if products are at least this many times as fast."""


def prepare() -> None:
    """Set how threads wait, and MKL's code. This has no effect after torch has been imported."""
    if "torch" not in sys.modules:
        choose_products(busy=share_the_cores())


def share_the_cores(load: Path = Path("/proc/loadavg")) -> bool:
    """If another process is computing now, let torch's threads sleep soon while they wait for each other.

    By default they wait by spinning. That is a sixth to a quarter faster if the machine is free, but up to ten times
    slower next to a busy process (docs/LOG.md). torch reads GOMP_SPINCOUNT when it is imported, so it must be set
    before. A value that the user has set is kept. Returns whether another process is computing.
    """
    if not load.exists():  # not Linux: other systems use another OpenMP
        return False
    looks = []
    for _ in range(8):
        running = load.read_text(encoding="ascii").split()[3]  # "0.00 0.01 0.05 2/300 123": 2 of 300 run
        looks.append(int(running.partition("/")[0]) - 1)
        time.sleep(0.002)
    busy = sorted(looks)[len(looks) // 2] >= 1
    if busy:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    return busy


def choose_products(busy: bool) -> None:
    """Let MKL run its code for Intel's processors if that is faster. The choice is written to MINIGPT_MKL.

    Child processes inherit the choice.
    """
    asked = os.environ.get(SWITCH)
    if asked not in ("intel", "usual"):
        asked = "intel" if gains(busy) else "usual"
    if asked == "intel":
        asked = "intel" if load_stub_library() else "usual"
    os.environ[SWITCH] = asked


def gains(busy: bool, facts: Path = Path("/proc/cpuinfo"), torch_folder: Path | None = None) -> bool:
    """Whether MKL is faster with Intel's code on this processor, as measured earlier or now (a second).

    Next to busy processes it cannot be measured. Then the answer is True, which is usually right, and is not stored.
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
    """The key of the measurement, which also depends on torch's version."""
    return f"mkl, {processor}, torch {metadata.version('torch')}"


def amd_processor(facts: Path = Path("/proc/cpuinfo")) -> str | None:
    """The name of this processor if it is one of AMD's with AVX2, on Linux; else None."""
    if sys.platform != "linux" or platform.machine() != "x86_64" or not facts.is_file():
        return None
    text = facts.read_text(encoding="utf-8")
    name = re.search(r"^model name\s*: (.*)", text, re.MULTILINE)
    return name[1] if name and "AuthenticAMD" in text and " avx2 " in text else None


def _torch_libraries() -> Path | None:
    """The folder of torch's libraries; None if torch is not installed here."""
    found = importlib.util.find_spec("torch")
    folder = Path(found.origin).parent / "lib" if found and found.origin else None
    return folder if folder and (folder / "libtorch_cpu.so").is_file() else None
