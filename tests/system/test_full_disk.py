"""Test that a full disk (a small tmpfs, which needs root) gives one clear line, and no saved checkpoint is lost."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from cli_run import SMALL, fails, text

from minigpt.cli import main
from minigpt.errors import StorageError
from minigpt.generation.fast import rows
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of its own for one test, of the given size."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    yield small
    subprocess.run(["umount", str(small)], check=True)


@pytest.mark.parametrize("small_disk", ["1200k"], indirect=True)
def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint(
    small_disk: Path, tmp_path: Path, capsys
) -> None:
    (tmp_path / "cats.txt").write_text(text())
    argv = ["train", str(tmp_path / "cats.txt"), *SMALL, "--logging.runs-dir", str(small_disk), "--name", "r"]
    argv += ["--model.embed-dim", "64", "--train.save-every", "5", "--train.keep-checkpoints", "9"]
    fails(capsys, argv, "the disk is full")
    saved = sorted((small_disk / "r/checkpoints").glob("step-*"))
    assert saved, "at least one checkpoint fitted"
    assert main(["generate", str(small_disk / "r/checkpoints/last"), "--prompt", "the", "--max-new-tokens", "5"]) == 0


@pytest.mark.parametrize("small_disk", ["1m"], indirect=True)
def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_whole(small_disk: Path) -> None:
    saved = {"w": torch.arange(6.0).view(2, 3), "h": torch.ones(2, dtype=torch.bfloat16)}
    state = CheckpointState(model={})
    first = checkpoint.save(small_disk / "checkpoints/step-00000001", {"model": saved, "ema": {}}, state)
    checkpoint.point(first.parent, "last", first)
    large = {"model": {"w": torch.zeros(2_000_000)}, "ema": {}}
    with pytest.raises(StorageError, match="the disk is full"):
        checkpoint.save(small_disk / "checkpoints/step-00000002", large, state)
    assert checkpoint.resolve(small_disk) == first
    assert torch.equal(checkpoint.load(small_disk).tensors["model"]["w"], saved["w"])
    assert sorted(path.name for path in first.parent.iterdir()) == ["last", "step-00000001"]


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize("small_disk", ["16k"], indirect=True)
def test_kernels_work_although_the_cache_is_full(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIGPT_CACHE", str(small_disk))
    with pytest.warns(UserWarning, match="compiled kernels are not kept: .*No space left on device"):
        assert rows.library.__wrapped__() is not None  # not the cached result, which other tests use
    assert list((small_disk / "kernels").iterdir()) == []
