"""Test what two processes do to one run at the same moment: no mix of two checkpoints, no lost lock, no half run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tuned_run import make_base

from minigpt import GPT, ModelConfig, quantize_run
from minigpt.errors import RunError
from minigpt.explanation import over_time
from minigpt.files import temporary_path
from minigpt.layout import RunFolder, step_of
from minigpt.runs import consolidate, lock, quantize
from minigpt.runs.load import load_run
from minigpt.runs.lock import delete_run, is_held, run_lock
from minigpt.runs.record import find_runs, run_folders
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState, read_state


def save_next(run: Path) -> None:
    """What a training does: save a better checkpoint, point to it, delete the one before."""
    old, folder = checkpoint.resolve(run), RunFolder(run)
    shape, step = read_state(old).model or {}, step_of(old) + 1
    weights = GPT(ModelConfig(**shape), seed=step).weights()
    saved = checkpoint.save(
        folder.checkpoint(step), {"model": weights}, CheckpointState(model=shape, train=TrainState(step=step))
    )
    checkpoint.point(folder.checkpoints, "best", saved)
    checkpoint.delete(old)


def then_saves(function: Callable[..., Any], run: Path) -> Callable[..., Any]:
    """The function; after its first call the run saves its next checkpoint."""
    left = [run]

    def call(*words: Any) -> Any:
        found = function(*words)
        if left:
            save_next(left.pop())
        return found

    return call


def test_a_run_that_saves_while_it_is_loaded_gives_weights_and_step_of_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_base(tmp_path / "my")
    monkeypatch.setattr(GPT, "from_pretrained", then_saves(GPT.from_pretrained, run))
    loaded = load_run(run, "cpu")
    weights = checkpoint.load(loaded.checkpoint).weights
    assert loaded.step == step_of(loaded.checkpoint) == 2 and loaded.model.source == run
    assert all(torch.equal(weights[name], tensor) for name, tensor in loaded.model.weights().items())


def test_a_run_that_saves_while_it_is_quantised_gives_weights_and_state_of_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_base(tmp_path / "my")
    monkeypatch.setattr(quantize, "read_pretrained", then_saves(quantize.read_pretrained, run))
    packed = load_run(quantize_run(run, bits=8).path, "cpu")
    shape = read_state(packed.checkpoint).model or {}
    expected = GPT(ModelConfig(**shape), seed=3).weights()["blocks.0.attention.qkv.weight"]
    assert packed.step == 1
    assert torch.allclose(packed.model.weights()["blocks.0.attention.qkv.weight"], expected, atol=0.02)


def test_a_checkpoint_that_is_deleted_before_its_turn_is_left_out_of_the_timeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_base(tmp_path / "my")
    save_next(run)
    gone = RunFolder(run).checkpoint(1)
    monkeypatch.setattr(RunFolder, "steps", lambda _: [gone, RunFolder(run).checkpoint(2)])
    found = over_time.timeline(run, load_run(run, "cpu").tokenizer, [1, 2, 3])
    assert [each["step"] for each in found["steps"]] == [2]
    monkeypatch.setattr(RunFolder, "steps", lambda _: [gone])
    with pytest.raises(RunError, match="no checkpoints"):
        over_time.timeline(run, load_run(run, "cpu").tokenizer, [1])


def test_a_new_run_keeps_its_lock_when_one_of_its_name_has_been_deleted(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "my"
    with run_lock(path):
        path.rename(tmp_path / "deleted")
        new = run_lock(path)
        new.__enter__()
    assert is_held(path / ".lock"), "the old lock's end does not delete the new lock"
    new.__exit__(None, None, None)
    assert not path.exists()


def test_the_files_of_a_run_are_deleted_without_an_open_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = make_base(tmp_path / "my"), list[bool]()
    monkeypatch.setattr(lock, "delete_path", lambda work: seen.append(is_held(work / ".lock")))
    delete_run(run)
    assert seen == [False] and not run.exists(), "NFS deletes no folder that has an open file"


def test_a_run_that_is_deleted_while_its_lock_is_looked_at_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert not is_held(tmp_path / "my" / ".lock")


def test_a_half_written_or_half_deleted_run_is_not_listed(tmp_path: Path) -> None:
    make_base(tmp_path / "my")
    make_base(temporary_path(tmp_path / "other"))
    make_base(temporary_path(tmp_path / "sweep" / "other"))
    make_base(tmp_path / "sweep" / "lr=1")
    assert [run.name for run in find_runs(tmp_path)] == ["my", "sweep/lr=1"]
    assert run_folders([tmp_path]) == [tmp_path / "my", tmp_path / "sweep" / "lr=1"]


def test_the_parts_of_a_run_that_trains_are_not_joined(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_base(tmp_path / "my")
    monkeypatch.setattr(consolidate, "in_parts", lambda _: True)
    step = RunFolder(run).checkpoint(1)
    step.rename(step.with_name(f".{step.name}-old"))  # a kill between the two renames that replace it
    for path in (run, step):
        with run_lock(run), pytest.raises(RunError, match="is being trained"):
            consolidate.consolidate(path)
        assert consolidate.consolidate(path) == [step]
    assert not is_held(RunFolder(run).lock)
