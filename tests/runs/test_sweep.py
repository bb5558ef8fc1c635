"""Test minigpt sweep: grid, resuming, failures, signals, devices; all but one test use a tiny stand-in for training."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from cli_run import SMALL, fails, json_of, text
from tuned_run import make_base, questions

from minigpt.cli import main
from minigpt.cli.sweep import at_commas, split_grid
from minigpt.config.rates import default_rate
from minigpt.console import ending_signals, own_group, passed_on
from minigpt.errors import ConfigError
from minigpt.runs import sweep as sweeps
from minigpt.runs.lock import run_lock

STAND_IN = """
import json, os, sys, time
from pathlib import Path
flags = dict(word[2:].split("=", 1) for word in sys.argv[1:] if "=" in word and word.startswith("--"))
name, seed = sys.argv[sys.argv.index("--name") + 1], flags["train.seed"]
run = Path(flags["logging.runs-dir"]) / name
step = run / "checkpoints/step-00000002"
step.mkdir(parents=True, exist_ok=True)
with Path(os.environ["TOLD"]).open("a") as told:
    told.write(json.dumps([name, os.environ.get("CUDA_VISIBLE_DEVICES"), sys.argv[1:]]) + "\\n")
together, waited = int(os.environ.get("TOGETHER", "1")), time.time()
while len(Path(os.environ["TOLD"]).read_text().splitlines()) < together:
    if time.time() - waited > 30:
        sys.exit("minigpt: the others did not come")
    time.sleep(0.01)
print("training", seed, file=sys.stderr, flush=True)
if Path(os.environ["TOLD"]).with_name("fail").exists() and seed == "2":
    sys.exit("minigpt: the data is gone")
rate = float(flags["optimizer.learning-rate"])
finished = True
import signal
def stop(*_):
    global finished
    finished = False
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
(run / "config.yaml").write_text(json.dumps({"train": {"seed": int(seed)}, "optimizer": {"learning_rate": rate}}))
end = time.time() + float(os.environ.get("SECONDS_EACH", "0"))
while finished and time.time() < end:
    time.sleep(0.01)
loss = 1 + int(seed) / 100 + rate
line = {"step": 2, "seconds": 60, "val_loss": loss, "bits_per_byte": loss}
(run / "metrics.jsonl").write_text(json.dumps(line) + "\\n")
(step / "state.json").write_text(json.dumps({"model": {}, "train": {"step": 1, "finished": finished}}))
(step / "manifest.json").write_text("{}")
sys.exit(0 if finished else 143)
"""
GRID = ["--optimizer.learning-rate", "1e-3,3e-3", "--train.seed", "1,2"]
NAMES = [f"learning_rate={rate},seed={seed}" for rate in ("0.001", "0.003") for seed in (1, 2)]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program instead of minigpt train; returns the file in which it writes how it was called."""
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    (tmp_path / "cats.txt").write_text(text())
    monkeypatch.setattr(sweeps, "PROGRAM", (sys.executable, str(tmp_path / "stand_in.py")))
    monkeypatch.setenv("TOLD", str(tmp_path / "told"))
    return tmp_path / "told"


def calls(told: Path) -> list[list]:
    found = [json.loads(line) for line in told.read_text().splitlines()] if told.exists() else []
    told.unlink(missing_ok=True)
    return found


def command(tmp_path: Path, *more: str) -> list[str]:
    return ["sweep", str(tmp_path / "cats.txt"), *GRID, "--logging.runs-dir", str(tmp_path / "runs"), *more]


def test_commas_separate_values_but_not_within_brackets_or_quotes() -> None:
    assert at_commas('a,[b,c],"d,e",it\'s,f') == ["a", "[b,c]", '"d,e"', "it's", "f"]
    argv = ["my.txt", "--train.seed", "1,2", "--model.bias", "true,false", "--data.clean=[nfc,lower],[]", "--json"]
    argv += ["--lora.targets", "[qkv,out]", "--logging.track", "wandb,mlflow", "--data.source", "a.txt,b.txt"]
    argv += [
        "--train.sample-prompt",
        '"Oh, ",x',
        "--optimizer.learning-rate",
        "1e-3,0.003",
        "--logging.csv",
        "--resume",
    ]
    assert split_grid(argv) == (
        {
            "train.seed": [1, 2], "model.bias": [True, False], "data.clean": [["nfc", "lower"], []],
            "data.source": ["a.txt", "b.txt"], "train.sample_prompt": ["Oh, ", "x"],
            "optimizer.learning_rate": [0.001, 0.003],
        },
        {"lora.targets": ["qkv", "out"], "logging.track": "wandb,mlflow", "logging.csv": True},
        ["my.txt", "--json", "--resume"],
    )  # fmt: skip
    assert split_grid(["--model.bias", "my.txt"]) == ({}, {"model.bias": True}, ["my.txt"])
    with pytest.raises(ConfigError, match=r"empty value.*; train.max_steps: 3 is given twice"):
        split_grid(["--train.seed", "1,,2", "--train.max-steps", "3,4,3"])


def test_names_say_the_values_and_differ() -> None:
    trials = sweeps.combine(
        {"data.clean": [["nfc", "lower"], []], "model.bias": [True], "train.sample_prompt": ["/", "?"]}
    )
    assert list(trials) == [
        "clean=nfc+lower,bias=true,sample_prompt=none", "clean=nfc+lower,bias=true,sample_prompt=none+",
        "clean=none,bias=true,sample_prompt=none", "clean=none,bias=true,sample_prompt=none+",
    ]  # fmt: skip
    assert list(sweeps.combine({"lora.dropout": [0.1], "model.dropout": [0.2]})) == [
        "lora.dropout=0.1,model.dropout=0.2"
    ]


def test_every_mistake_is_reported_before_anything_runs(tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["sweep", str(tmp_path / "cats.txt"), "--logging.runs-dir", str(tmp_path / "runs")]
    grid = ["--train.seed", "1,x", "--train.max-stepz", "3,4", "--model.embed-dim", "32,33"]
    assert main([*argv, *grid]) == 2
    err = capsys.readouterr().err
    for part in ("train.seed", "'x'", "--train.max-stepz: no such", "did you mean --train.max-steps?", "embed_dim 33"):
        assert part in err
    assert len(err.splitlines()) == 3, err
    fails(capsys, argv, "nothing to sweep", "0.01,0.02")
    fails(capsys, [*argv, "--lora.rank", "2,4"], "lora.rank: is for finetuning")
    fails(capsys, [*argv, "--train.seed", "1,2", "--devices", "gpu"], "--devices gpu", "cuda:0")
    fails(capsys, [*argv, "--train.seed", "1,2", "--devices", "cuda:99"], "CUDA device", "choose from", "cpu")
    fails(capsys, [*argv, "--train.seed", "1,2", "--devices", "cpu,"], "--devices : write cpu or cuda:0")
    fails(capsys, [*argv, "--train.seed", "1,2", "--train.seed", "3"], "nothing to sweep")
    fails(capsys, [*argv, "--train.seed", "1,2", "--logging.name", "x"], "--name")
    fails(capsys, ["sweep", "-", "--train.seed", "1,2"], "standard input")
    fails(capsys, [*argv, "--train.seed", "1,2", "--max-steps", "3"], "did you mean --train.max-steps?")
    assert not (tmp_path / "runs").exists()


def test_a_finetuning_is_checked_against_its_base(tmp_path: Path, capsys, monkeypatch) -> None:
    base, data = make_base(tmp_path / "runs/base"), questions(tmp_path / "q.jsonl")
    argv = ["sweep", str(base), str(data), "--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, [*argv, "--model.num-layers", "2,3"], "--model.num-layers: the base has 2")
    fails(capsys, [*argv, "more.txt", "--lora.rank", "2,4"], "more.txt: one word too many")
    plan = json_of(capsys, *argv, "--lora.rank", "2,4", "--dry-run")
    assert plan["sweep"] == str(tmp_path / "runs/q-sweep")
    assert [run["name"] for run in plan["runs"]] == ["rank=2", "rank=4"]
    assert plan["runs"][0]["command"].startswith(f"minigpt finetune {base} {data} --")
    assert " --lora.rank=2 " in plan["runs"][0]["command"]
    assert not (tmp_path / "runs/q-sweep").exists()
    monkeypatch.chdir(tmp_path)
    again = json_of(capsys, "sweep", "base", "q.jsonl", "--lora.rank", "2,4", "--dry-run")["runs"][0]["command"]
    assert again.startswith("minigpt finetune base q.jsonl --"), "a bare name is a run, as in finetune"


def test_a_finetuning_by_a_config_has_the_rate_of_the_optimizer_that_a_flag_names(tmp_path: Path) -> None:
    base, recipe = make_base(tmp_path / "base"), tmp_path / "config.yaml"
    recipe.write_text("optimizer: {kind: adamw, learning_rate: 3e-4}\ndata: {source: my.txt}\n")
    resolve = sweeps.tuning_resolver(str(base), str(recipe))
    rates = [resolve({"optimizer.kind": kind}).optimizer.learning_rate for kind in ("adamw", "muon")]
    assert rates == [3e-4, default_rate("muon", 32) / 10]


def test_the_runs_of_a_text_alone_are_equally_long(tmp_path: Path, capsys) -> None:
    """`minigpt train TEXT` would make a separate plan for each."""
    (tmp_path / "cats.txt").write_text(text())
    argv = ["sweep", str(tmp_path / "cats.txt"), "--train.seed", "1,2", "--dry-run"]
    for more, length in (([], "--train.max-steps=2000"), (["--train.max-epochs", "2"], "--train.max-epochs=2"),
                         (["--budget", "2m"], "--budget 2m")):  # fmt: skip
        commands = [run["command"] for run in json_of(capsys, *argv, *more)["runs"]]
        assert all(length in command for command in commands), commands
        assert all(("max-steps" in command) == ("max-steps" in length) for command in commands)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="the system does not list open files")
def test_a_run_that_has_ended_keeps_no_file_open(stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    """A sweep may have more runs than a process may have files."""
    opened: list[int] = []
    monkeypatch.setattr(sweeps, "outcome", lambda *_: opened.append(len([*Path("/proc/self/fd").iterdir()])))
    assert main(command(tmp_path)) == 0
    assert len(opened) == 4 and len(set(opened)) == 1


def test_a_sweep_continues_after_a_failure_and_the_same_command_fixes_it(
    stand_in: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "fail").touch()
    assert main([*command(tmp_path), "--json"]) == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert [call[0] for call in calls(stand_in)] == NAMES
    assert {run["name"]: run["state"] for run in report["runs"]} == {
        name: "failed" if name.endswith("2") else "finished" for name in NAMES
    }
    assert report["runs"][-1]["error"] == "the data is gone"
    folder = tmp_path / "runs/cats-sweep"
    assert "the data is gone" in (folder / f"{NAMES[1]}.log").read_text()
    assert "training 1" in (folder / f"{NAMES[0]}.log").read_text()
    assert captured.err.splitlines() == [
        f"1 of 4: {NAMES[0]}  val 1.0110 (1.011 bits/byte)  1.0 min",
        f"2 of 4: {NAMES[1]}  failed: the data is gone",
        f"3 of 4: {NAMES[2]}  val 1.0130 (1.013 bits/byte)  1.0 min",
        f"4 of 4: {NAMES[3]}  failed: the data is gone",
    ], "one line per run"
    states = json.loads((folder / "sweep.json").read_text())["runs"]
    assert states[NAMES[1]]["state"] == "failed"
    (tmp_path / "fail").unlink()
    assert main(command(tmp_path)) == 0
    assert [call[0] for call in calls(stand_in)] == [NAMES[1], NAMES[3]], "only the failed runs were tried again"
    shown = capsys.readouterr().out
    assert sorted(NAMES, key=shown.index) == [NAMES[0], NAMES[2], NAMES[1], NAMES[3]], "the best run comes first"
    assert "1.0160 ± 0.0071" in shown, "1.011 and 1.021 over two seeds"
    assert shown.splitlines()[-1] == (
        "best: --optimizer.learning-rate=0.001: best val 1.0160 ± 0.0071 (1.0160 ± 0.0071 bits/byte)"
    )
    assert main(command(tmp_path)) == 0
    assert calls(stand_in) == []


def test_every_run_of_a_sweep_takes_a_budget_or_is_tiny(stand_in: Path, tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path, "--budget", "90s")) == 0
    assert all(" ".join(words[:4]) == f"train {tmp_path / 'cats.txt'} --budget 90s" for _, _, words in calls(stand_in))
    assert main(command(tmp_path, "--tiny-run")) == 0
    assert all("--tiny-run" in words for _, _, words in calls(stand_in))
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"cats-sweep", "cats-tiny-sweep"}
    assert main(command(tmp_path, "--budget", "90s")) == 0
    assert calls(stand_in) == [], "the same command continues"
    assert main(command(tmp_path)) == 0
    assert (tmp_path / "runs/cats-sweep-2").is_dir(), "without the budget it is another sweep"
    capsys.readouterr()
    fails(capsys, command(tmp_path, "--budget", "90s", "--tiny-run"), "--tiny-run: does not go with --budget")
    fails(capsys, command(tmp_path, "--budget", "soon"), "soon")
    fails(capsys, command(tmp_path, "--budget", "9s", "--train.max-steps", "5"), "--budget chooses how long to train")
    fails(capsys, ["sweep", "--train.seed", "1,2"], "name a text or a recipe")
    base = make_base(tmp_path / "runs/base")
    fails(capsys, ["sweep", str(base), "x.jsonl", "--train.seed", "1,2", "--tiny-run"], "--tiny-run: is for training")


def test_the_end_of_a_run_is_told_without_reading_the_others(tmp_path: Path) -> None:
    trials = {"seed=1": {"train.seed": "1"}, "seed=2": {"train.seed": "2"}}
    for name in trials:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("{}")
    (tmp_path / "seed=1/metrics.jsonl").write_text('{"step": 9, "val_loss": 1.5, "seconds": 60}\n')
    progress = sweeps.Progress(sweeps.Sweep(tmp_path, "train", (), (), {}, {}, trials, {}))
    (tmp_path / "seed=2/config.yaml").write_text("model: [")
    assert "val 1.5000" in sweeps.outcome(progress, "seed=1")


def test_another_grid_or_setting_is_another_sweep(stand_in: Path, tmp_path: Path, capsys) -> None:
    assert main(command(tmp_path, "--name", "mine")) == 0
    assert main(command(tmp_path)) == 0
    fails(capsys, command(tmp_path, "--name", "mine", "--model.dropout", "0.2"), "another sweep", "--name")
    assert main(command(tmp_path, "--model.dropout", "0.2")) == 0
    (tmp_path / "runs/full").mkdir()
    (tmp_path / "runs/full/note").touch()
    fails(capsys, command(tmp_path, "--name", "full"), "not a sweep")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"mine", "cats-sweep", "cats-sweep-2", "full"}
    assert all("--model.dropout=0.2" in call[2] for call in calls(stand_in)[-4:])
    with run_lock(tmp_path / "runs/mine"):
        fails(capsys, command(tmp_path, "--name", "mine"), "is being trained by process")


def test_devices_run_at_once_each_showing_its_own(stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sweeps, "check_devices", lambda devices: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    monkeypatch.setenv("TOGETHER", "3")  # each waits until three have started
    assert main(command(tmp_path, "--devices", "cuda:0,cuda:1,cpu")) == 0
    told = calls(stand_in)
    assert sorted(call[1] for call in told[:3]) == ["", "5", "7"]
    assert sorted(call[0] for call in told) == NAMES


@pytest.mark.parametrize(("system", "words"), [("darwin", ["--train.device=cpu"]), ("linux", [])])
def test_cpu_hides_mps_too(system: str, words: list[str], stand_in: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "platform", system)
    assert main(command(tmp_path, "--devices", "cpu")) == 0
    assert {*calls(stand_in)[0][2][-1:]} & {"--train.device=cpu"} == set(words)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_what_runs_and_the_same_command_continues(number, stand_in, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("SECONDS_EACH", "60")

    def interrupt() -> None:
        while not list(tmp_path.glob("runs/*/*/config.yaml")):  # the stand-in handles signals before it writes its file
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert main(command(tmp_path)) == 128 + number
    thread.join()
    assert [call[0] for call in calls(stand_in)] == NAMES[:1], "waiting runs were not started"
    states = json.loads((tmp_path / "runs/cats-sweep/sweep.json").read_text())["runs"]
    assert [run["state"] for run in states.values()] == ["interrupted", "waiting", "waiting", "waiting"]
    monkeypatch.setenv("SECONDS_EACH", "0")
    assert main(command(tmp_path)) == 0
    assert [call[0] for call in calls(stand_in)] == NAMES


def test_on_windows_ctrl_c_does_not_reach_runs_and_ctrl_break_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    names = {signal: {"SIGBREAK": 21, "CTRL_BREAK_EVENT": 1}, subprocess: {"CREATE_NEW_PROCESS_GROUP": 512}}
    for module, values in names.items():
        for name, value in values.items():
            monkeypatch.setattr(module, name, value, raising=False)
    assert own_group() == 512
    assert ending_signals() == [signal.SIGINT, signal.SIGTERM, 21]
    assert {passed_on(number) for number in ending_signals()} == {1}, "Popen refuses SIGINT there"


@pytest.mark.slow  # three processes
def test_a_real_sweep_killed_in_the_middle_ends_as_its_runs_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "cats.txt").write_text(text())
    settings = [*SMALL, "--model.attention", "sdpa", "--train.max-steps", "200", "--train.save-every", "20"]
    settings += ["--train.sample-every", "0", "--train.eval-every", "50", "--logging.log-every", "20"]
    argv = ["sweep", str(tmp_path / "cats.txt"), *settings, "--train.seed", "1,2"]
    argv += ["--logging.runs-dir", str(tmp_path / "runs"), "--name", "s"]
    process = subprocess.Popen([sys.executable, "-m", "minigpt", *argv], stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("runs/s/seed=2/checkpoints/step-*/manifest.json")):  # 180 of 200 steps are left
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    report = json_of(capsys, *argv)
    assert [run["state"] for run in report["runs"]] == ["finished"] * 2
    [group] = report["groups"]
    assert (group["seeds"], group["deviation"]["best_val_loss"] > 0) == ([1, 2], True)
    alone = ["train", str(tmp_path / "cats.txt"), *settings, "--train.seed", "2"]
    assert main([*alone, "--logging.runs-dir", str(tmp_path / "runs"), "--name", "alone"]) == 0
    one, two = (
        (tmp_path / "runs" / name / "checkpoints/step-00000200/model.safetensors").read_bytes()
        for name in ("alone", "s/seed=2")
    )
    with capsys.disabled():
        print("\na sweep of 2 runs, stopped in its second, which then ends bit-identical to the run alone")
    assert one == two
