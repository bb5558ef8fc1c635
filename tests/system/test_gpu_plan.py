"""Test the GPU plan at a tiny size on a CPU: each step gets its results, and a second start does what is missing."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli.arguments import config_from, parse
from minigpt.cli.train import Train

PLAN = Path(__file__).resolve().parents[2] / "benchmarks/gpu_plan.py"
_spec = importlib.util.spec_from_file_location("gpu_plan", PLAN)
assert _spec and _spec.loader
gpu_plan: Any = importlib.util.module_from_spec(_spec)
sys.modules["gpu_plan"] = gpu_plan  # dataclasses look their module up here
_spec.loader.exec_module(gpu_plan)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("".join(f"the {n % 7} cats sat on mat {n % 11} .\n" for n in range(3000)))
    flags = ("--out", str(tmp_path / "out"), "--tiny", "--text", str(tmp_path / "text.txt"))
    return [sys.executable, str(PLAN), *flags]


def results(out: Path) -> list[dict]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def complete(lines: list[dict]) -> bool:
    """Whether the first step has all its scores."""
    return bool(lines) and len(lines[0]["result"]["scores"]) == len(gpu_plan.SCORES)


class FakePlan(gpu_plan.Plan):
    """A plan that notes commands and does not run them; each prints the next of `outputs`, by default nothing."""

    def __init__(self, out: Path, minutes: float, outputs: Iterable[str | None] = ()):
        super().__init__(out, minutes, False, None)
        self.commands: list[list[str]] = []
        self.outputs = iter(outputs)

    def _minigpt(self, name: str, words: list[str], seconds: float) -> str | None:
        self.commands.append(words)
        return next(self.outputs, "")


def begun(out: Path, name: str, seconds: float) -> None:
    """Write what the plan reads of a run that was killed: its config, and a checkpoint after some seconds."""
    run = out / "runs" / name
    (run / "checkpoints/step-00000200").mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / "checkpoints/last").write_text("step-00000200\n")
    (run / "checkpoints/step-00000200/state.json").write_text(json.dumps({"train": {"seconds": seconds}}))


def test_a_training_that_has_begun_gets_the_rest_of_its_time_or_what_is_left(tmp_path: Path) -> None:
    step = gpu_plan.PLAN[0]
    plans = first, second, third = [FakePlan(tmp_path, minutes) for minutes in (13.0, 13.0, 2.0)]
    first._train(step)
    begun(tmp_path, step.name, 300.0)
    second._train(step)
    third._train(step)
    words = [plan.commands[0] for plan in plans]
    minutes = [float(each[each.index("--train.max-minutes") + 1]) for each in words]
    assert minutes == pytest.approx([step.seconds / 60, step.seconds / 60, 5.0 + 2.0 - gpu_plan.SPARE / 60], abs=0.01)
    assert [each[-1] == "--resume" for each in words] == [False, True, True]


def test_a_training_that_does_not_fit_waits_for_the_next_start(tmp_path: Path) -> None:
    step = gpu_plan.PLAN[1]
    for minutes, starts in ((step.seconds / 60, 0), ((step.seconds + gpu_plan.SPARE + 5) / 60, 1)):
        plan = FakePlan(tmp_path, minutes)
        plan._train(step)
        assert len(plan.commands) == starts
    begun(tmp_path, step.name, 10.0)
    plan = FakePlan(tmp_path, gpu_plan.SPARE / 60 - 0.1)
    plan._train(step)
    assert plan.commands == [], "its time is over already, so it would end at once"


def test_a_training_that_the_end_cut_off_is_no_result_yet(tmp_path: Path) -> None:
    step = gpu_plan.PLAN[0]
    plan = FakePlan(tmp_path, 13.0)

    def cut_off() -> Iterable[str]:
        (tmp_path / "runs" / step.name / "checkpoints/best").mkdir(parents=True)
        plan.end = 0.0
        yield ""

    plan.outputs = iter(cut_off())
    plan._train(step)
    assert [words[0] for words in plan.commands] == ["train"]
    assert results(tmp_path) == []


@pytest.mark.parametrize("step", [each for each in gpu_plan.PLAN if isinstance(each, gpu_plan.Training)])
def test_only_the_clock_ends_a_training_and_evaluations_are_rare(step: Any, tmp_path: Path) -> None:
    plan = FakePlan(tmp_path, 13.0)
    plan._train(step)
    args, overrides = parse(Train, plan.commands[0][1:], "train", with_config=True)
    settings = config_from(args.what, overrides)[0].train
    assert (settings.max_steps, settings.max_epochs, settings.max_tokens, settings.early_stopping) == (None,) * 4
    assert (settings.device, settings.eval_every, settings.save_every) == ("cuda", "auto", 2000)


@pytest.mark.slow
def test_a_copy_of_the_tree_trains_where_minigpt_is_not_installed(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    for entry in Path(pytest.__file__).parents[1].iterdir():
        if "minigpt" not in entry.name:
            (site / entry.name).symlink_to(entry)
    (tmp_path / "text.txt").write_text("a cat sat on a mat .\n" * 300)
    words = [sys.executable, "-S", "-m", "minigpt", "train", str(tmp_path / "text.txt"), "--train.max-steps", "1"]
    words += ["--train.precision", "fp32", "--model.attention", "sdpa", "--train.sample-every", "0"]
    words += ["--logging.plots", "false", "--logging.runs-dir", str(tmp_path / "runs")]
    kept = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(words, cwd=PLAN.parents[1], env=kept, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_score_that_ran_out_of_time_is_computed_at_the_next_start(tmp_path: Path) -> None:
    step = gpu_plan.PLAN[0]
    (tmp_path / "runs" / step.name / "checkpoints" / "best").mkdir(parents=True)
    first = FakePlan(tmp_path, 13.0, ["", '{"loss": 1.5}', "", None])  # training, val, no test split, out of time
    first._train(step)
    assert [words[0] for words in first.commands] == ["train", "eval", "eval", "eval"]
    [line] = results(tmp_path)
    assert line["result"]["scores"] == {"val": {"loss": 1.5}, "test": None}
    assert not first._done(step)
    second = FakePlan(tmp_path, 13.0, ['{"loss": 1.25}'])
    second._train(step)
    run = str(tmp_path / "runs" / step.name)
    assert second.commands == [["eval", run, "--json", "--split", "test", "--stride", "32"]]
    scores = line["result"]["scores"] | {"test --stride 32": {"loss": 1.25}}
    assert [each["result"]["scores"] for each in results(tmp_path)] == [scores]
    assert second._done(step)
    assert [results(tmp_path)[0][key] == line[key] for key in ("name", "command", "device", "commit")] == [True] * 4


def test_a_command_that_fails_and_one_that_runs_out_of_time_differ(tmp_path: Path) -> None:
    plan = gpu_plan.Plan(tmp_path, 13.0, False, None)
    assert plan._minigpt("record", ["--version"], 60.0).startswith("minigpt")
    assert plan._minigpt("record", ["no-such-command"], 60.0) == ""
    assert plan._minigpt("record", ["doctor"], 0.0) is None


@pytest.mark.slow  # four commands and nine evaluations, each a process
def test_a_killed_plan_goes_on_with_what_has_no_result(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        end = time.monotonic() + 300
        while not complete(results(out)) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)  # also ends the command that it runs
    before = results(out)
    assert [line["name"] for line in before] == ["record"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    lines = results(out)
    assert lines[:1] == before
    assert [line["name"] for line in lines] == ["record", "small-25m", "wikitext2-22m", "124M"]
    for line in lines[:3]:
        scores = line["result"]["scores"]
        assert scores.keys() == {"val", "test", "test --stride 32"}
        assert math.isfinite(scores["val"]["perplexity"]), line
        assert scores["test"] is None, "a file has no test split"
    assert lines[3]["result"]["sides"][0]["tokens_per_second"] > 0
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "")
