"""Test that today's code reads the unfinished runs of an older minigpt in old_runs/ and continues them, bit for bit."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from cli_run import fails, json_of
from old_arithmetic import arithmetic, bits, last, state_of, tensors_of
from safetensors.torch import load_file

from minigpt import load_run
from minigpt.cli import main
from minigpt.config import RunConfig, TrainConfig, load_config
from minigpt.runs.train import keep_evaluations

OLD = Path(__file__).parent / "old_runs"
RUNS = ("cats", "pets")
RATES = ["--optimizer.learning-rate", "0.02", "--optimizer.adamw-ratio", "0.5"]
"""The rates of cats.yaml, which is from the time when learning_rate was AdamW's alone and Muon's was 0.02."""
KEPT = json.loads((OLD / "ends.json").read_text())


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the old runs, as the working directory."""
    shutil.copytree(OLD, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old runs, trained on to their ends by the commands that a person would give."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(OLD, folder, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MINIGPT_CACHE", str(folder / "cache"))
        # before the base is trained further
        assert main(["finetune", "pets.yaml", "--resume", "--train.max-steps", "24"]) == 0
        assert main(["train", "cats.yaml", *RATES]) == 0
    return folder / "runs"


def same_arithmetic() -> None:
    """Skip if this machine rounds differently from the one that the old code ran on."""
    here = arithmetic()
    if here != KEPT["arithmetic"]:
        pytest.skip(f"the bits are of a machine that rounds differently: {KEPT['arithmetic']}; here: {here}")


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_resumes_to_the_bits_of_the_old_end(ended: Path, run: str) -> None:
    same_arithmetic()
    step, kept = last(ended / run), KEPT["ends"][run]
    assert step.name == kept["step"]
    assert bits(tensors_of(step)) == kept["bits"]
    assert state_of(step) == kept["state"]


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_resumes_to_the_old_end_but_for_rounding(ended: Path, run: str) -> None:
    found, kept = tensors_of(last(ended / run)), load_file(OLD / f"{run}-end.safetensors")
    assert found.keys() == KEPT["ends"][run]["bits"].keys()
    for name, value in kept.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: name + text)
    steps = [json.loads(line)["step"] for line in (ended / run / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps)), "every step once, those of the old code and those of the new code"
    assert steps[-1] == KEPT["ends"][run]["state"]["step"]


@pytest.mark.parametrize("more", [[], ["--resume"], ["--optimizer.learning-rate", "0.005"]])
def test_an_old_rate_is_never_taken_for_muons(old: Path, capsys: pytest.CaptureFixture[str], more: list[str]) -> None:
    """Its own config.yaml says which rates the run has; the recipe's learning_rate alone means another rate today."""
    fails(capsys, ["train", "cats.yaml", *more], "runs/cats began when learning_rate was adamw's, and", *RATES)
    assert load_config("runs/cats/config.yaml").optimizer.learning_rate == 0.02
    assert load_config("runs/cats/config.yaml").optimizer.adamw_ratio == 0.5
    assert "muon_learning_rate" in (old / "runs/cats/config.yaml").read_text(), "the refused run is unchanged"


def test_an_old_recipe_begins_as_before_and_its_rate_no_longer_jumps(old: Path) -> None:
    """The warm-up ends at step 10; the schedule then starts at that point, not where it would be without a warm-up."""
    before = [json.loads(line) for line in (old / "runs/cats/metrics.jsonl").read_text().splitlines()]
    assert main(["train", "cats.yaml", "--name", "again", *RATES]) == 0
    after = [json.loads(line) for line in (old / "runs/again/metrics.jsonl").read_text().splitlines()]
    assert [line["lr"] for line in before[:2]] == [0.005, 0.01], "AdamW's"
    assert [line["lr"] for line in after[1:3]] == [0.01, 0.02], "Muon's"
    assert before[2]["lr"] < 0.0094 < 0.0099 < after[3]["lr"] / 2
    same_arithmetic()
    assert [line["loss"] for line in after[1:3]] == [line["loss"] for line in before[:2]]


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_is_evaluated_as_before(old: Path, capsys: pytest.CaptureFixture[str], run: str) -> None:
    kept = json.loads((OLD / f"{run}-eval.json").read_text())
    del kept["floors"]["xz"]  # the length of an archive depends on the compressor
    found = json_of(capsys, "eval", f"runs/{run}", "--data", "cats.txt")
    for name, value in kept.items():
        nested = isinstance(value, dict)
        for key, number in value.items() if nested else [(name, value)]:
            now = found[name][key] if nested else found[name]
            assert now == (number if isinstance(number, str) else pytest.approx(number, rel=1e-4)), (name, key)


@pytest.mark.parametrize("run", RUNS)
def test_an_old_run_generates_as_before(old: Path, capsys: pytest.CaptureFixture[str], run: str) -> None:
    kept = json.loads((OLD / f"{run}-generate.json").read_text())
    found = json_of(capsys, "generate", f"runs/{run}/checkpoints/last", "--prompt", "the cat", "--seed", "3")
    assert found.keys() >= kept.keys()
    assert found["settings"] == kept["settings"]
    same_arithmetic()
    assert found["samples"] == kept["samples"]


def test_an_old_run_is_shown_and_loaded(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run, state, steps in (("cats", "interrupted", 30), ("pets", "finished", 12)):
        shown = json_of(capsys, "runs", "show", f"runs/{run}")
        assert (shown["name"], shown["state"], shown["steps"]) == (run, state, steps)
        assert shown["receipt"]["seed"] == {"cats": 7, "pets": 11}[run]
        assert [checkpoint["name"] for checkpoint in shown["checkpoints"]][-1] == last(old / "runs" / run).name
    cats, pets = (load_run(f"runs/{run}", "cpu") for run in RUNS)
    average = load_file(cats.checkpoint / "ema.safetensors")
    assert (cats.step, pets.step) == (15, 12)
    assert all(torch.equal(value, average[name]) for name, value in cats.model.weights().items())
    assert pets.config.lora.rank == 2
    assert pets.model.weights().keys() == cats.model.weights().keys()
    assert not torch.equal(pets.model.blocks[0].attention.qkv.weight, cats.model.blocks[0].attention.qkv.weight)


def test_an_old_run_keeps_how_often_it_is_evaluated(old: Path) -> None:
    """Its config has a number where today's recipe has nothing, which now means auto."""
    assert RunConfig().train.eval_every == "auto"
    assert keep_evaluations(RunConfig(), old / "runs/cats").train.eval_every == 5
    given = RunConfig(train=TrainConfig(eval_every=9))
    assert keep_evaluations(given, old / "runs/cats").train.eval_every == 9
