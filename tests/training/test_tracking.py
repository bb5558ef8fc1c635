"""Test metrics in other tools: read back with each tool's own reader and compared with metrics.jsonl."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from cli_run import SMALL, fails, text
from tracked_run import QUIET, by_key, cut_and_resumed, forget_trackers, say
from tuned_run import make_base, questions, tune

from minigpt.cli import main
from minigpt.files import read_lines
from minigpt.training.hooks import trackers, tracking


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_trackers(monkeypatch)


def test_tensorboard_reads_back_what_metrics_jsonl_holds(tmp_path: Path, capsys) -> None:
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = cut_and_resumed(tmp_path, capsys, "tensorboard")
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    expected = by_key(run)
    assert set(events.Tags()["scalars"]) == set(expected)
    for key, values in expected.items():
        found = {event.step: event.value for event in events.Scalars(key)}
        assert found == {step: float(np.float32(value)) for step, value in values.items()}, key
    [config] = events.Tensors("config/text_summary")[:1]
    assert b'"embed_dim": 32' in config.tensor_proto.string_val[0]
    say(capsys, "TensorBoard", expected, "equal in its single precision, through one resume")


def test_tensorboard_hides_a_start_that_was_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the tensorboard extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (5.0, 4.0):
        tracker = trackers.TensorBoard()
        tracker.start({}, "my", tmp_path, 0)
        tracker.log(10, {"step": 10, "loss": loss})
        tracker.finish()
        time.sleep(1)  # the files are sorted by the time, in whole seconds
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("loss")] == [4.0]


@pytest.mark.slow  # starts W&B's service twice and its reader twice
def test_wandb_reads_back_what_metrics_jsonl_holds(tmp_path: Path, capsys) -> None:
    pytest.importorskip("wandb", reason="needs the wandb extra")
    run = cut_and_resumed(tmp_path, capsys, "wandb")
    files = sorted(run.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    expected, found, ids = by_key(run), {}, set()
    for file in files:
        done = subprocess.run(
            [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
            capture_output=True, text=True, check=True, timeout=60, env=os.environ | {"WANDB_DIR": str(tmp_path)},
        )  # fmt: skip
        for record in map(json.loads, done.stdout.splitlines()):
            if record["type"] == "run":
                ids.add(record["run"]["run_id"])
            if record["type"] == "history":
                row = record["history"]["item"]
                for key, value in row.items():
                    if not key.startswith("_") and key != "step":
                        found.setdefault(key, {})[row["step"]] = value
    assert found == expected
    assert ids == {json.loads((run / "tracking.json").read_text())["wandb"]}
    say(capsys, "W&B offline", expected, "equal to the last bit, in two files of one run id through one resume")


@pytest.mark.slow  # importing mlflow takes seconds
def test_mlflow_reads_back_what_metrics_jsonl_holds(tmp_path: Path, capsys) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the mlflow extra")
    run = cut_and_resumed(tmp_path, capsys, "mlflow")
    client = mlflow.MlflowClient((run / "mlruns").absolute().as_uri())
    experiment = client.get_experiment_by_name("minigpt")
    [record] = client.search_runs([experiment.experiment_id])
    assert (record.info.run_name, record.info.status) == ("cats", "FINISHED")
    assert record.data.params["model.embed_dim"] == "32"
    expected = by_key(run)
    assert set(record.data.metrics) == set(expected)
    for key, values in expected.items():
        assert {m.step: m.value for m in client.get_metric_history(record.info.run_id, key)} == values, key
    say(capsys, "MLflow", expected, "equal to the last bit, in one run through one resume")


class Fake:
    """A tool that fails at a step, and keeps what it was given."""

    def __init__(self, fails_at: int = 99):
        self.fails_at, self.told = fails_at, []

    def start(self, config, name, folder, step) -> str:
        self.told.append(("start", name, step))
        return "here"

    def log(self, step, values) -> None:
        if step == self.fails_at:
            raise ConnectionError("the server [x] is gone\nand more")
        self.told.append((step, values.get("loss")))

    def finish(self) -> None:
        self.told.append("finish")


def test_a_tool_that_fails_costs_one_warning_and_the_others_go_on(tmp_path: Path, monkeypatch, capsys) -> None:
    fakes = {"wandb": Fake(fails_at=4), "mlflow": Fake()}
    monkeypatch.setattr(tracking, "make_tracker", fakes.__getitem__)
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, *QUIET, "--logging.runs-dir", str(tmp_path / "runs")]
    assert main([*argv, "--logging.track", "wandb, mlflow"]) == 0
    err = capsys.readouterr().err.replace("\n", " ")
    assert err.count("tracking stopped (the server [x] is gone)") == 1
    assert [told[0] for told in fakes["wandb"].told] == ["start", 0, 2]
    lines = [(line["step"], line.get("loss")) for line in read_lines(tmp_path / "runs/cats/metrics.jsonl")]
    assert fakes["mlflow"].told == [("start", "cats", 0), *lines, "finish"]


def test_a_finetuning_is_tracked_too(tmp_path: Path, monkeypatch) -> None:
    fake = Fake()
    monkeypatch.setattr(tracking, "make_tracker", lambda name: fake)
    run = tune(make_base(tmp_path / "runs/base"), questions(tmp_path / "q.jsonl"), logging__track="mlflow")
    lines = [(line["step"], line.get("loss")) for line in read_lines(run.path / "metrics.jsonl")]
    assert fake.told == [("start", "tuned", 0), *lines, "finish"]


def test_a_missing_or_misspelled_tracker_fails_before_any_file_is_written(tmp_path: Path, monkeypatch, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, [*argv, "--logging.track", "wandb,tensorbord"], "logging.track.1", "did you mean tensorboard")
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    fails(capsys, [*argv, "--logging.track", "wandb"], "wandb is not installed", "pip install 'minigpt[wandb]'")
    assert not (tmp_path / "runs/cats").exists()


@pytest.mark.parametrize(
    ("environment", "netrc", "found"),
    [
        ({}, "", False),
        ({"WANDB_API_KEY": "x"}, "", True),
        ({}, "machine api.wandb.ai login user password x\n", True),
        ({"WANDB_BASE_URL": "https://own.example:8080"}, "machine api.wandb.ai login user password x\n", False),
        ({"WANDB_BASE_URL": "https://own.example:8080"}, "machine own.example login user password x\n", True),
    ],
)
def test_wandb_is_offline_where_no_key_is_found(environment, netrc, found, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "netrc").write_text(netrc)
    (tmp_path / "netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trackers._wandb_key() is found
