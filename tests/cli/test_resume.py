"""Test that the same command continues a stopped run, and never with other settings or another text."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from cli_run import SMALL, fails, text
from mostly_slow import mostly_slow
from tuned_run import make_base, questions, tune

from minigpt.cli import main
from minigpt.config import load_config
from minigpt.errors import RunError
from minigpt.runs.finetune import merge_run
from minigpt.runtime import device
from minigpt.weights import checkpoint
from minigpt.weights.damage import PARTS

fcntl = pytest.importorskip("fcntl", reason="needs POSIX")
pty = pytest.importorskip("pty", reason="needs POSIX")
termios = pytest.importorskip("termios", reason="needs POSIX")


def test_an_existing_run_is_continued_or_kept_but_never_overwritten(broken: Path, capsys) -> None:
    before = (broken / "metrics.jsonl").read_text()
    base = ["train", str(broken / "config.yaml"), "--logging.runs-dir", str(broken.parent)]
    assert main([*base, "--name", "broken"]) == 0, "same settings: finished, nothing to do"
    assert (broken / "metrics.jsonl").read_text() == before
    fails(capsys, [*base, "--name", "broken", "--train.seed", "1"], "exists with another train.seed", "--resume")
    many = ["--train.seed", "1", "--model.dropout", "0.1", "--optimizer.eps", "1e-7", "--model.qk-norm", "false"]
    many += ["--optimizer.weight-decay", "0.3", "--schedule.kind", "linear"]
    said = "model.dropout, model.qk_norm, optimizer.weight_decay, optimizer.eps, schedule.kind and 1 more; choose a new"
    fails(capsys, [*base, "--name", "broken", *many], said)
    fails(
        capsys,
        [*base, "--name", "broken", "--train.seed", "1", "--resume"],
        "cannot be continued with another train.seed",
    )
    fails(capsys, [*base, "--name", "nowhere", "--resume"], "nothing to resume")
    assert main([*base, "--name", "broken", "--resume", "--train.max-steps", "50"]) == 0
    steps = [json.loads(line)["step"] for line in (broken / "metrics.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 20, 30, 40, 50]
    assert main([*base, "--train.seed", "1", "--train.max-steps", "2"]) == 0, "the next free name is taken"
    assert (broken.parent / "broken-2" / "config.yaml").is_file()


def heeds_signals() -> None:
    """Make signals work even if these tests run under nohup, or in the background."""
    for number in (signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)


def training(folder: Path, *before: str, **how: Any) -> subprocess.Popen[str]:
    """A process that trains, and has already started training."""
    how.setdefault("preexec_fn", heeds_signals)
    (folder / "cats.txt").write_text(text())
    argv = [*before, sys.executable, "-m", "minigpt", "train", "cats.txt", *SMALL, "--train.max-steps", "5000"]
    process = subprocess.Popen(argv, cwd=folder, stdout=subprocess.PIPE, text=True, **how)
    metrics = folder / "runs/cats/metrics.jsonl"
    for _ in range(3000):
        if metrics.exists() and metrics.read_bytes().count(b"\n") > 1:  # the first line is of step 0
            break
        time.sleep(0.1)
    return process


def assert_saved(run: Path) -> None:
    """Assert that the last step is saved as unfinished, and that there are no temporary files."""
    last = (run / "checkpoints/last").read_text().strip()
    state = json.loads((run / "checkpoints" / last / "state.json").read_text())["train"]
    assert state["step"] > 0 and state["finished"] is False
    assert not list(run.rglob(".*.tmp"))


@pytest.mark.parametrize("number", mostly_slow([signal.SIGINT, signal.SIGHUP]))
def test_a_signal_saves_and_the_same_command_continues(tmp_path: Path, number: signal.Signals) -> None:
    process = training(tmp_path, stderr=subprocess.PIPE)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number, err
    assert f"interrupted by {number.name}" in err
    assert "saved; the same command continues" in err
    assert "Traceback" not in err
    assert_saved(tmp_path / "runs/cats")


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_the_run(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()

    def own_terminal() -> None:
        heeds_signals()
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    process = training(tmp_path, stdin=theirs, stderr=theirs, preexec_fn=own_terminal)
    os.close(theirs)
    os.close(ours)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGHUP
    assert_saved(tmp_path / "runs/cats")


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path) -> None:
    process = training(tmp_path, "nohup", stderr=subprocess.PIPE)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_measured_precision_is_kept_when_a_run_goes_on(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")]
    argv += ["--train.precision", "auto"]

    monkeypatch.setattr(device, "_best_precision", lambda device: "bf16")
    assert main([*argv, "--train.max-steps", "4"]) == 0
    monkeypatch.setattr(device, "_best_precision", lambda device: "fp32")
    assert main([*argv, "--train.max-steps", "6", "--resume"]) == 0
    states = [
        json.loads(path.read_text()) for path in sorted((tmp_path / "runs/cats").glob("checkpoints/*/state.json"))
    ]
    assert states[-1]["train"]["step"] == 6
    assert states[-1]["precision"] == "bf16"


def test_without_a_recipe_a_run_goes_on_with_its_own_settings_and_the_new_length(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For example after `minigpt train my.txt`, which chooses the settings itself."""
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), "--logging.runs-dir", str(tmp_path / "runs")]
    assert main([*argv, *SMALL, "--train.max-steps", "4", "--train.max-minutes", "5"]) == 0
    before = load_config(tmp_path / "runs/cats/config.yaml")
    assert main([*argv, "--resume", "--train.max-steps", "6"]) == 0
    after = load_config(tmp_path / "runs/cats/config.yaml")
    assert (after.train.max_steps, after.train.max_minutes) == (6, None)
    assert after == before.changed(train={"max_steps": 6, "max_minutes": None})
    assert (tmp_path / "runs/cats/checkpoints/last").read_text().strip() == "step-00000006"
    config = str(tmp_path / "runs/cats/config.yaml")
    assert main(["train", config]) == 0
    advised = f"minigpt train {config} --resume --train.max-steps 12 continues"
    assert advised in capsys.readouterr().err.replace("\n", " ").replace("  ", " ")
    assert main(["train", config, "--resume", "--train.max-tokens", str(7 * 8 * 32)]) == 0
    again = load_config(tmp_path / "runs/cats/config.yaml")
    assert again == before.changed(train={"max_steps": None, "max_minutes": None, "max_tokens": 7 * 8 * 32})


def test_a_run_does_not_go_on_with_another_text_or_optimizer(tmp_path: Path, capsys) -> None:
    source = tmp_path / "cats.txt"
    source.write_text(text())
    base = ["train", str(source), *SMALL, "--logging.runs-dir", str(tmp_path), "--name", "mine"]
    assert main([*base, "--train.max-steps", "4"]) == 0
    longer = [*base, "--train.max-steps", "8", "--resume"]
    fails(capsys, [*longer, "--optimizer.kind", "adamw"], "cannot be continued with another optimizer.kind")
    source.write_text(text().replace("cat", "cow"))
    fails(capsys, longer, "was trained on another text", "--name")
    source.write_text(text())
    assert main(longer) == 0


def test_a_length_given_with_resume_replaces_the_recipes(tmp_path: Path) -> None:
    recipe, run = tmp_path / "cats.yaml", tmp_path / "runs/cats"
    (tmp_path / "cats.txt").write_text(text())
    recipe.write_text(f"data: {{source: {tmp_path / 'cats.txt'}}}\ntrain: {{max_steps: 4}}\n")
    argv = ["train", str(recipe), *SMALL, "--logging.runs-dir", str(tmp_path / "runs")]
    assert main(argv) == 0
    assert main([*argv, "--resume", "--train.max-tokens", str(6 * 8 * 32)]) == 0
    train = load_config(run / "config.yaml").train
    assert (train.max_steps, train.max_tokens) == (None, 6 * 8 * 32)
    assert (run / "checkpoints/last").read_text().strip() == "step-00000006"


@pytest.mark.parametrize("finished", [True, False])
def test_a_length_that_has_ended_already_is_refused(tmp_path: Path, capsys, finished: bool) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path), "--train.max-steps"]
    assert main([*argv, "4"]) == 0
    last = tmp_path / "cats/checkpoints/last"
    saved = checkpoint.load(last, PARTS)
    saved.train.finished = finished  # False: as if it had been interrupted in its last evaluation
    checkpoint.save(saved.path, saved.tensors, saved.state)
    said = "is at step 4, where this length has ended already; give a longer length, such as --train.max-steps 8"
    fails(capsys, [*argv, "3", "--resume"], said)
    assert load_config(tmp_path / "cats/config.yaml").train.max_steps == 4
    assert main([*argv, "4", "--resume"]) == 0
    assert checkpoint.load(last, ()).train.finished


def test_a_run_goes_on_with_its_token_files_in_another_place(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path), "--train.max-steps", "2"]
    assert main([*argv, "--data.cache-dir", str(tmp_path / "old")]) == 0
    assert main([*argv, "--data.cache-dir", str(tmp_path / "new"), "--resume"]) == 0
    assert (tmp_path / "new").is_dir()


def test_a_larger_micro_batch_can_be_set_after_memory_ran_out(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(tmp_path), "--resume"]
    assert main([*argv[:-1], "--train.max-steps", "2"]) == 0
    last = tmp_path / "cats/checkpoints/last"
    saved = checkpoint.load(last, PARTS)
    saved.train.micro_batch_size = 2  # as if memory had run out
    checkpoint.save(saved.path, saved.tensors, saved.state)
    for more, size in (["3"], 2), (["4", "--train.micro-batch-size", "4"], None):
        assert main([*argv, "--train.max-steps", *more]) == 0
        assert checkpoint.load(last, ()).train.micro_batch_size == size


def test_resume_without_a_changed_setting_keeps_the_budget(tmp_path: Path) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), "--logging.runs-dir", str(tmp_path)]
    assert main([*argv, *SMALL, "--train.max-steps", "2"]) == 0
    receipt = tmp_path / "cats/receipt.json"
    plan = {"asked": {"budget": "5m", "settings": {}}}
    receipt.write_text(json.dumps(json.loads(receipt.read_text()) | {"budget": plan}))
    assert main([*argv, "--resume"]) == 0
    assert json.loads(receipt.read_text())["budget"] == plan
    assert main([*argv, "--resume", "--train.max-steps", "3"]) == 0
    assert "budget" not in json.loads(receipt.read_text())


def test_a_merged_run_has_only_weights_and_is_not_continued(tmp_path: Path) -> None:
    base, data = make_base(tmp_path / "base"), questions(tmp_path / "q.jsonl")
    run = tune(base, data, "small", lora__rank=2, train__max_steps=1)
    merge_run(run.path, tmp_path / "merged")
    with pytest.raises(RunError, match=r"merged: was merged, so it has only weights"):
        tune(base, data, "merged", train__max_steps=2, resume=True)
