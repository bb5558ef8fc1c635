"""Test that Trackio (pip install minigpt[trackio]) reads back every metric in metrics.jsonl."""

import json
from pathlib import Path

import pytest
from tracked_run import by_key, cut_and_resumed, forget_trackers, say


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_trackers(monkeypatch)


@pytest.mark.slow  # importing trackio takes seconds
def test_trackio_reads_back_what_metrics_jsonl_holds(tmp_path: Path, capsys) -> None:
    pytest.importorskip("trackio", reason="needs the trackio extra")
    run = cut_and_resumed(tmp_path, capsys, "trackio")
    from trackio.sqlite_storage import SQLiteStorage

    [name] = SQLiteStorage.get_runs("minigpt")
    assert name == json.loads((run / "tracking.json").read_text())["trackio"]
    expected, found = by_key(run), {}
    for row in SQLiteStorage.get_logs("minigpt", name):
        for key in expected.keys() & row.keys():
            found.setdefault(key, {})[row["step"]] = row[key]
    assert found == expected
    say(capsys, "Trackio", expected, "equal to the last bit, in one run through one resume")
