"""Make a run that a tracking tool follows, stop it, continue it, and return the lines of its metrics.jsonl."""

import os
import time
from pathlib import Path

import pytest
from cli_run import SMALL, text
from tuned_run import StopAt

from minigpt.cli import main
from minigpt.files import read_lines
from minigpt.runs import train as assembly

QUIET = ["--train.sample-every", "0", "--logging.log-every", "2", "--train.eval-every", "4", "--train.max-steps", "8"]


def forget_trackers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove keys, folders and servers of the person who runs the tests."""
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_", "TRACKIO_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", "/nowhere")
    for name in ("TRACKIO_DIR", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_DISABLE_TELEMETRY"):
        monkeypatch.setenv(name, "")  # so that changes by the code are undone after the test
        monkeypatch.delenv(name)


def cut_and_resumed(folder: Path, capsys: pytest.CaptureFixture[str], track: str) -> Path:
    """A run tracked by the tool, stopped at step 4 and continued to step 8; tracking.json is kept."""
    (folder / "cats.txt").write_text(text())
    argv = ["train", str(folder / "cats.txt"), *SMALL, *QUIET, "--logging.runs-dir", str(folder / "runs")]
    argv += ["--logging.track", track]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "Signals", StopAt)
        assert main(argv) == 143
    run = folder / "runs/cats"
    ids = run / "tracking.json"
    before = ids.read_text() if ids.is_file() else ""
    time.sleep(1)  # W&B names its folder by the time, in whole seconds
    assert main(argv) == 0
    assert (ids.read_text() if ids.is_file() else "") == before
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [0, 2, 4, 6, 8]
    err = capsys.readouterr().err.replace("\n", " ")
    assert err.count(f"{track}: ") >= 2, f"not both runs said where they are (W&B also advertises): {err}"
    assert "tracking stopped" not in err, err
    return run


def by_key(run: Path) -> dict[str, dict[int, float]]:
    """metrics.jsonl as {key: {step: value}}."""
    found: dict[str, dict[int, float]] = {}
    for line in read_lines(run / "metrics.jsonl"):
        for key, value in line.items():
            if key != "step":
                found.setdefault(key, {})[line["step"]] = value
    return found


def say(capsys: pytest.CaptureFixture[str], tool: str, expected: dict[str, dict[int, float]], exact: str) -> None:
    with capsys.disabled():
        print(f"\n{tool}: {sum(map(len, expected.values()))} values of {len(expected)} metrics, {exact}")
