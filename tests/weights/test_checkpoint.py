"""Test checkpoints: complete or absent, refused if damaged, and the previous one is always kept."""

import errno
import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from minigpt.errors import CheckpointError, DamagedError, StorageError
from minigpt.layout import step_of, whole_steps
from minigpt.training.hooks.checkpoints import prune
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState
from minigpt.weights.damage import newest_whole
from minigpt.weights.pretrained import read_pretrained

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


@pytest.mark.parametrize(("tensor", "offset"), [("model/w", 10**12), ("model/w", 1), ("model/h", 10**18)])
def test_a_place_outside_of_a_tensor_in_parts_is_damage_before_memory_is_taken(
    tmp_path: Path, tensor: str, offset: int
) -> None:
    places = {f"model/{name}": {"saved_offsets": [0] * value.dim()} for name, value in TENSORS["model"].items()}
    work, step = tmp_path / "work", tmp_path / "step-00000003"

    def write() -> None:
        work.mkdir()
        named = {f"model/{name}": value for name, value in TENSORS["model"].items()}
        file = work / "shard-00001-model-00001-of-00001.safetensors"
        checkpoint.write_tensors(file, named, {"DCP_SHARDING_INFO": json.dumps(places)})
        checkpoint.seal(work, step, state(3))

    write()
    assert torch.equal(checkpoint.load(step).tensors["model"]["w"], TENSORS["model"]["w"])
    places[tensor]["saved_offsets"][0] = offset
    write()
    with pytest.raises(DamagedError, match=f"the files hold only a part of {tensor}"):
        checkpoint.load(step)


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
    old = second.rename(second.with_name(f".{second.name}-old"))  # the first of the two renames that replace a step
    assert checkpoint.resolve(first.parent / "last") == old, "who only reads renames nothing: `save` may be going on"
    assert checkpoint.load(first.parent / "last").train.step == 2
    assert newest_whole(first.parent, lambda _: None).path == second  # type: ignore[union-attr]
    assert not old.exists()
    shutil.copytree(second, old)  # a kill after the second rename, and then damage
    (second / "model.safetensors").write_bytes(b"")
    assert newest_whole(first.parent, lambda _: None).path == second  # type: ignore[union-attr]
    assert not old.exists(), "else its checkpoint would be deleted as unfinished"
    shutil.rmtree(second.with_name(f"damaged-{second.name}"))
    (first.parent / "last").unlink()  # the checkpoint was saved, but `last` was not written
    assert checkpoint.resolve(first.parent / "last") == second
    checkpoint.point(first.parent, "last", first.parent / "step-00000009")
    assert checkpoint.resolve(tmp_path) == second, "a pointer to a missing checkpoint is ignored"


@pytest.mark.parametrize("text", [".", "..", "/", "../..", "step-00000001-copy", "step-1", ""])
def test_a_pointer_that_names_no_step_is_passed_over(tmp_path: Path, text: str) -> None:
    first, second = save(tmp_path, 1), save(tmp_path, 2)
    shutil.copytree(first, first.with_name("step-00000001-copy"))
    (first.parent / "last").write_text(text)
    assert newest_whole(first.parent, lambda _: None).path == second  # type: ignore[union-attr]


COPIES = ("step-00000002-copy", "step-00000002 (2)", "step-2 (2)", "step-00000002.bak", "step-2", "step-000000002",
          "step-٠٠٠٠٠٠٠٢", "step-")  # fmt: skip


def test_a_copy_of_a_checkpoint_is_left_alone_and_can_be_named(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in range(1, 4)]
    copies = [Path(shutil.copytree(paths[1], paths[1].with_name(name))) for name in COPIES]
    (paths[0].parent / "step-00000009").write_text("a file")
    (paths[0].parent / "step-notes.txt").write_text("a file")
    assert whole_steps(paths[0].parent) == paths
    prune(paths[0].parent, keep=1)
    assert all(checkpoint.load(copy).train.step == 2 for copy in copies)
    assert whole_steps(paths[0].parent) == paths[2:]
    assert [step_of(copy) for copy in copies] == [2, 2, 2, 2, 2, 2, 0, 0]


def test_steps_are_ordered_by_number(tmp_path: Path) -> None:
    paths = [save(tmp_path, step) for step in (99_999_998, 99_999_999, 100_000_000)]
    assert whole_steps(paths[0].parent) == paths


def test_deleting_a_checkpoint_first_takes_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = save(tmp_path, 1)
    seen: list[list[str]] = []

    def rmtree(*_: Path, **__: bool) -> None:
        seen.append(sorted(path.name for path in first.parent.iterdir()))

    monkeypatch.setattr(shutil, "rmtree", rmtree)
    checkpoint.delete(first)
    assert seen[0][0].startswith(".step-00000001.") and seen[0][1:] == ["last"], "the next save or start deletes these"
    monkeypatch.undo()
    checkpoint.delete_unfinished(first.parent)
    assert [path.name for path in first.parent.iterdir()] == ["last"]


def test_a_checkpoint_that_others_read_on_nfs_is_deleted_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlink = os.unlink

    def busy(path: str, **where: int) -> None:
        if path == "model.safetensors":
            raise OSError(errno.EBUSY, "Device or resource busy")
        unlink(path, **where)

    first, second = save(tmp_path, 1), save(tmp_path, 2)
    monkeypatch.setattr(os, "unlink", busy)
    prune(first.parent, keep=1)
    (left,) = first.parent.glob(".*")
    assert whole_steps(first.parent) == [second] and [file.name for file in left.iterdir()] == ["model.safetensors"]
    monkeypatch.undo()
    checkpoint.delete_unfinished(first.parent)
    assert not left.exists()


def test_a_checkpoint_that_is_deleted_or_replaced_while_it_is_read_is_looked_up_again(tmp_path: Path) -> None:
    first, seen = save(tmp_path, 1), []

    def read(directory: Path) -> int:
        seen.append(directory.name)
        if len(seen) == 1:
            save(tmp_path, 2)
            checkpoint.delete(first)
        elif len(seen) == 2:
            os.utime(save(tmp_path, 2), (1, 1))  # another time than before, however fast the disk is
            raise DamagedError("state.json: its sha256 is that of the older one", "")
        return checkpoint.load(directory).train.step

    assert checkpoint.current(tmp_path, read) == 2
    assert seen == ["step-00000001", "step-00000002", "step-00000002"]
    (tmp_path / "checkpoints/step-00000002/state.json").write_text("{}")
    with pytest.raises(DamagedError, match="truncated"):
        checkpoint.load(tmp_path)
    with pytest.raises(CheckpointError, match="no such run or checkpoint"):
        checkpoint.load(first)


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
    with pytest.raises(CheckpointError, match="holds no checkpoint; give a run"):
        checkpoint.load(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(CheckpointError, match="holds no checkpoint yet; wait for its first"):
        checkpoint.load(tmp_path)
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DamagedError, match=r"truncated.*; the run has no other checkpoint; copy or make it again"):
        checkpoint.load(path)
    path = save(tmp_path, 1)
    manifest = json.loads((path / "manifest.json").read_text())
    (path / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99 is not 1"):
        checkpoint.load(path)
    sizes = '{"format": 1, "files": {"state.json": {"bytes": "many", "sha256": 3}}}'
    for text in ("{}", "[" * 100_000, '{"format": 1, "files": []}', '{"format": 1, "files": {"state.json": 5}}', sizes):
        (path / "manifest.json").write_text(text)
        with pytest.raises(DamagedError, match="not a whole minigpt checkpoint"):
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


def test_only_unfinished_checkpoints_are_deleted(tmp_path: Path) -> None:
    """The folder may be a link to one that holds more, as in a run that another person made."""
    (tmp_path / "home/.ssh").mkdir(parents=True)
    (tmp_path / "home/.profile").touch()
    (tmp_path / "home/.step-00000001.old-host-1-0123abcd.tmp").mkdir()
    (tmp_path / "home/.step-00000001-old").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "home")
    checkpoint.delete_unfinished(tmp_path / "checkpoints")
    assert {path.name for path in (tmp_path / "home").iterdir()} == {".ssh", ".profile"}


def test_a_tensor_of_an_impossible_size_is_damage(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}).encode()
    content, state = len(header).to_bytes(8, "little") + header, b'{"model": {}}'
    files = {"model.safetensors": content, "state.json": state}
    for name, held in files.items():
        (tmp_path / name).write_bytes(held)
    listed = {name: {"bytes": len(held), "sha256": sha256(held).hexdigest()} for name, held in files.items()}
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "files": listed}))
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.load(tmp_path)
    for name in ("manifest.json", "state.json"):
        (tmp_path / name).unlink()
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        read_pretrained(tmp_path)
