"""Test the processes that the page starts: no run is started twice, whatever happens at the same moment."""

import os
import shutil
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from served import make_runs
from test_workbench import until

from minigpt.errors import RunError, StorageError, UserError
from minigpt.runs.lock import run_lock
from minigpt.runs.record import read_run
from minigpt.serve.workbench import process
from minigpt.serve.workbench.process import Started


class SlowStarted(Started):
    """Takes its time to see whether a process is starting; a process that it started never ends."""

    def status(self, path: Path) -> dict[str, Any]:
        found = {"starting": path in self._started, "failed": ""}
        time.sleep(0.2)
        return found


def test_two_tabs_do_not_start_one_run_twice(tmp_path: Path):
    started, place = SlowStarted(), tmp_path / "my"
    with ThreadPoolExecutor(2) as tabs:
        both = [tabs.submit(started.begin, place, ["--version"]) for _ in range(2)]
    refused = [each.exception() for each in both if each.exception()]
    assert len(refused) == 1 and isinstance(refused[0], RunError)
    until(lambda: not Started.status(started, place)["starting"])


def test_a_process_that_has_ended_leaves_its_last_line_and_no_open_file(tmp_path: Path):
    started, place = Started(), tmp_path / "my"
    started.begin(place, ["no-such-command"])
    until(lambda: not started.status(place)["starting"])
    assert "no such command" in started.status(place)["failed"] and not started._started
    assert [each["name"] for each in started.without_a_run(())] == ["my"]
    started.begin(place, ["--version"])
    until(lambda: not started.status(place)["starting"])
    assert started.without_a_run(()) == []


def test_a_folder_for_temporary_files_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(StorageError, match=r"a run's output: cannot be written .* TMPDIR"):
        Started().begin(tmp_path / "my", ["--version"])


def test_a_process_that_has_just_taken_the_lock_is_not_started_again(tmp_path: Path):
    run = read_run(make_runs(tmp_path) / "base")
    shutil.rmtree(run.folder.checkpoints)

    class Late(Started):
        def status(self, path: Path) -> dict[str, Any]:
            held.enter_context(run_lock(path))
            return {"starting": False, "failed": ""}

    with ExitStack() as held, pytest.raises(UserError, match="a process trains it now"):
        Late().resume(run)


def test_stop_reaches_a_started_process_by_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a virtual environment on Windows the lock has another one: that of the Python which python.exe has started."""
    run = read_run(make_runs(tmp_path) / "base")
    started, told = Started(), []
    monkeypatch.setattr(process, "holder", lambda lock: 23380)
    monkeypatch.setattr(os, "kill", lambda pid, number: told.append(pid))
    started.stop(run)
    started._started[run.path] = cast(Any, (SimpleNamespace(pid=8456, poll=lambda: None), None))
    started.stop(run)
    started._started[run.path] = cast(Any, (SimpleNamespace(pid=8456, poll=lambda: 0), None))
    started.stop(run)
    assert told == [23380, 8456, 23380]
