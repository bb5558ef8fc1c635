"""Test that a run that dies or fails at any file operation resumes to the same bits, and leaves no extra files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("kind", ["kill", "EROFS", "ENOSPC"])
def test_every_file_operation_of_a_run_may_be_its_last(tmp_path: Path, kind: str) -> None:
    """kill: SIGKILL just before the operation. Otherwise the operation and all later ones fail, with one line. Then the
    same command continues.
    """
    argv = [sys.executable, str(TESTS / "crash_run.py"), str(tmp_path / "runs"), kind]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=1800)
    report = json.loads(done.stdout)
    assert len(report["operations"]) > 80
    assert report["wrong"] == {}
    print(f"\n{kind}: {len(report['operations'])} operations, each tried; all ended as the undisturbed run")
