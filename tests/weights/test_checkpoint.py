"""Checkpoints: whole or not there, refused when damaged, and the previous one survives whatever happens."""

import json
from pathlib import Path

import pytest
import torch

from minigpt.errors import CheckpointError, StorageError
from minigpt.layout import whole_steps
from minigpt.training.hooks.checkpoints import prune
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState

TENSORS = {"model": {"w": torch.arange(6.0).view(2, 3), "h": torch.ones(2, dtype=torch.bfloat16)}, "ema": {}}


def state(step: int) -> CheckpointState:
    return CheckpointState(model={"embed_dim": 8}, train=TrainState(step=step, seconds=0.1))


def save(folder: Path, step: int, **tensors) -> Path:
    path = checkpoint.save(folder / "checkpoints" / f"step-{step:08d}", {**TENSORS, **tensors}, state(step))
    checkpoint.point(path.parent, "last", path)
    return path


def test_round_trip_keeps_bits_dtypes_and_state(tmp_path: Path) -> None:
    loaded = checkpoint.load(save(tmp_path, 3), ("model",))
    assert torch.equal(loaded.tensors["model"]["w"], TENSORS["model"]["w"])
    assert loaded.tensors["model"]["h"].dtype == torch.bfloat16
    assert loaded.state == state(3)


def test_a_run_means_its_best_then_its_last_then_its_newest(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    assert checkpoint.resolve(tmp_path) == second
    checkpoint.point(first.parent, "best", first)
    assert checkpoint.resolve(tmp_path) == first
    assert checkpoint.resolve(first.parent / "last") == second
    (first.parent / "best").unlink()
    (first.parent / "last").unlink()
    assert checkpoint.resolve(tmp_path) == second


def test_a_kill_between_renames_or_before_a_pointer_loses_nothing(tmp_path: Path) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    second.rename(second.with_name(f".{second.name}-old"))  # the first of the two renames that replace a step
    assert checkpoint.resolve(first.parent / "last") == second
    assert checkpoint.load(second).train.step == 2
    (first.parent / "last").unlink()  # saved, but the pointer had not been written
    assert checkpoint.resolve(first.parent / "last") == second
    checkpoint.point(first.parent, "last", first.parent / "step-00000009")
    assert checkpoint.resolve(tmp_path) == second, "a pointer to nothing is passed over"


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in range(1, 6)]
    checkpoint.point(paths[0].parent, "best", paths[1])
    prune(paths[0].parent, keep=2)
    assert whole_steps(paths[0].parent) == [paths[1], paths[3], paths[4]]


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_truncated_and_flipped_files_are_refused_by_name(tmp_path: Path, name: str) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    whole = (path / name).read_bytes()
    (path / name).write_bytes(whole[:-3])
    with pytest.raises(CheckpointError, match=rf"{name}: truncated .*step-00000001"):
        checkpoint.load(path)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (path / name).write_bytes(flipped)
    with pytest.raises(CheckpointError, match=rf"{name}: damaged .*step-00000001"):
        checkpoint.load(path)
    (path / name).unlink()
    with pytest.raises(CheckpointError, match="is missing"):
        checkpoint.load(path)


def test_foreign_and_absent_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        checkpoint.load(tmp_path / "nowhere")
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoint.load(tmp_path)
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99 is not 1"):
        checkpoint.load(path)
    (path / "manifest.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a whole minigpt checkpoint"):
        checkpoint.load(path)


def test_saving_the_same_step_again_replaces_it_whole(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 1, model={"w": torch.zeros(2)})
    assert checkpoint.load(path).tensors["model"]["w"].tolist() == [0, 0]
    assert sorted(p.name for p in path.parent.iterdir()) == ["last", "step-00000001"]


def test_an_unwritable_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the directory should be")
    with pytest.raises(StorageError, match="cannot be written"):
        save(tmp_path, 1)
