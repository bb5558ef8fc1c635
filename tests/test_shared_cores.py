"""Test that threads spin for long only if no other process computes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minigpt.before_torch import share_the_cores


@pytest.mark.parametrize(
    ("load", "spin"), [("0.10 0.20 0.30 1/300 77", None), ("0.0 0.0 0.0 3/300 77", "3000"), (None, None)]
)
def test_threads_spin_long_unless_another_process_computes(
    load: str | None, spin: str | None, tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    if load:
        (tmp_path / "loadavg").write_text(load)
    share_the_cores(tmp_path / "loadavg")
    assert os.environ.pop("GOMP_SPINCOUNT", None) == spin
    monkeypatch.setenv("GOMP_SPINCOUNT", "5")
    share_the_cores(tmp_path / "loadavg")
    assert os.environ["GOMP_SPINCOUNT"] == "5"


@pytest.mark.skipif(not Path("/proc/loadavg").exists(), reason="only Linux says how many processes compute")
def test_a_process_that_computes_is_seen(monkeypatch) -> None:
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    busy = subprocess.Popen([sys.executable, "-c", "print(flush=True)\nwhile True: pass"], stdout=subprocess.PIPE)
    try:
        assert busy.stdout and busy.stdout.readline(), "it has started"
        share_the_cores()
    finally:
        busy.kill()
        busy.communicate()
    assert os.environ.pop("GOMP_SPINCOUNT") == "3000"
