"""Test the GPU plan at a tiny size on a CPU: every step has a result, a kill costs only the step that was running."""

import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PLAN = Path(__file__).resolve().parents[2] / "benchmarks/gpu_plan.py"
_spec = importlib.util.spec_from_file_location("gpu_plan", PLAN)
assert _spec and _spec.loader
gpu_plan: Any = importlib.util.module_from_spec(_spec)
sys.modules["gpu_plan"] = gpu_plan  # where its dataclasses look their module up
_spec.loader.exec_module(gpu_plan)


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    (tmp_path / "text.txt").write_text("".join(f"the {n % 7} cats sat on mat {n % 11} .\n" for n in range(3000)))
    flags = ("--out", str(tmp_path / "out"), "--tiny", "--text", str(tmp_path / "text.txt"))
    return [sys.executable, str(PLAN), *flags]


def results(out: Path) -> list[dict]:
    path = out / "results.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


class Told(gpu_plan.Plan):
    """A plan that notes a command in place of running it."""

    def _minigpt(self, name: str, words: list[str], seconds: float) -> str:
        self.words = words
        return ""


def test_a_training_that_has_begun_goes_on_with_the_time_that_is_left(tmp_path: Path) -> None:
    step = gpu_plan.PLAN[0]
    first, second = Told(tmp_path, 13.0, False, None), Told(tmp_path, 5.0, False, None)
    first._train(step)
    config = tmp_path / "runs" / step.name / "config.yaml"
    config.parent.mkdir(parents=True)
    config.touch()
    second._train(step)
    minutes = [float(each.words[each.words.index("--train.max-minutes") + 1]) for each in (first, second)]
    assert minutes[0] == step.seconds / 60
    assert minutes[1] < minutes[0], "which without --resume is another run"
    assert [each.words[-1] == "--resume" for each in (first, second)] == [False, True]


@pytest.mark.slow  # four commands and nine evaluations, each a process
def test_a_killed_plan_goes_on_with_what_has_no_result(command: list[str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL) as first:
        end = time.monotonic() + 300
        while not results(out) and first.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
        os.killpg(first.pid, signal.SIGKILL)  # and the command that it runs
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
