"""Test when MKL's code for Intel's processors is chosen: the library with one function, and when it is loaded."""

import ctypes
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from minigpt import before_torch, mkl
from minigpt.measured import keep

LINUX_X86 = sys.platform == "linux" and os.uname().machine == "x86_64"
needs_elf = pytest.mark.skipif(not LINUX_X86, reason="libraries are written for Linux on x86-64")
PRODUCT = """
import torch
left, right = (torch.randn(257, 129, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))
exact = left.double() @ right.double().T
print(os.environ["MINIGPT_MKL"], float(((left @ right.T) - exact).abs().max()))
"""


@needs_elf
@pytest.mark.parametrize(("name", "answer"), [("yes", 1), ("a_much_longer_name_than_that", 77)])
def test_the_loader_takes_the_library_and_its_function_runs(name: str, answer: int, tmp_path: Path):
    path = tmp_path / "made.so"
    path.write_bytes(mkl.shared_library(name, b"\xb8" + answer.to_bytes(4, "little") + b"\xc3"))
    assert getattr(ctypes.CDLL(str(path)), name)() == answer


@pytest.mark.slow
@needs_elf
@pytest.mark.parametrize("code", ["intel", "usual"])
def test_products_are_right_with_either_code(code: str):
    """Runs in a new process, since the choice is made before torch is imported."""
    words = "import os; from minigpt import before_torch; before_torch.prepare()" + PRODUCT
    here = {**os.environ, "MINIGPT_MKL": code, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", words], env=here, capture_output=True, text=True, check=True)
    chosen, error = done.stdout.split()
    assert chosen == code
    assert float(error) < 1e-4


FACTS = "model name\t: AMD EPYC\nvendor_id : AuthenticAMD\nflags : fpu avx avx2 fma\n"


@needs_elf
def test_only_an_amd_processor_with_avx2_is_asked(tmp_path: Path):
    facts = tmp_path / "cpuinfo"
    for text, name in ((FACTS, "AMD EPYC"), (FACTS.replace("AuthenticAMD", "GenuineIntel"), None),
                       (FACTS.replace(" avx2", ""), None)):  # fmt: skip
        facts.write_text(text)
        assert before_torch.amd_processor(facts) == name
    assert before_torch.amd_processor(tmp_path / "none") is None


@needs_elf
@pytest.mark.parametrize(
    ("known", "busy", "chosen"),
    [(1.3, False, "intel"), (1.0, False, "usual"), (1.0, True, "usual"), (None, True, "intel")],
)
def test_what_was_measured_decides(known, busy, chosen, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cpuinfo").write_text(FACTS)
    (tmp_path / "libtorch_cpu.so").write_bytes(b"")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    if known is not None:
        keep(before_torch.gain_key("AMD EPYC"), known)
    assert before_torch.gains(busy, tmp_path / "cpuinfo", tmp_path) == (chosen == "intel")


def test_a_library_that_is_none_gains_nothing(tmp_path: Path):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert mkl.measure_gain(tmp_path) == 1.0
    assert not told, "no process is left running"
