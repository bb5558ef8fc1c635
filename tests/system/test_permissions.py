"""Test that the umask decides who may read the files and folders that minigpt writes for its user."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_run import SMALL, text

from minigpt.cli import main

pytestmark = pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")


@pytest.fixture(params=[0o022, 0o027], ids=["022", "027"])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def wrong(folder: Path, umask: int) -> dict[str, str]:
    """Files and folders whose permissions differ from those that the shell gives; `folder` itself is not ours."""
    found = {}
    for path in folder.rglob("*"):
        mode, wanted = path.stat().st_mode & 0o777, (0o777 if path.is_dir() else 0o666) & ~umask
        if mode != wanted:
            found[str(path.relative_to(folder))] = f"{mode:o}, not {wanted:o}"
    return found


def test_every_file_of_a_run_and_its_exports_has_the_umasks_mode(
    tmp_path: Path, umask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cats.txt").write_text(text(100))
    flags = "--train.max-steps 4 --train.eval-every 2 --train.save-every 2 --train.sample-every 2".split()
    flags += ["--logging.csv", "true", "--train.ema-decay", "0.5"]
    assert main(["train", "cats.txt", *SMALL, *flags]) == 0
    assert main(["eval", "runs/cats", "--save"]) == 0
    (tmp_path / "runs/cats/tokenizer.json").chmod(0o600)  # an export gives a copy, not the original's permissions
    assert main(["export", "runs/cats"]) == 0
    (tmp_path / "runs/cats/tokenizer.json").chmod(0o666 & ~umask)
    assert main(["quantize", "runs/cats", "--group", "32"]) == 0
    tuning = ["--name", "more", "--lora.rank", "2", "--train.max-steps", "2", "--logging.plots", "false"]
    assert main(["finetune", "runs/cats", "cats.txt", *tuning]) == 0
    names = {path.name for path in tmp_path.rglob("*")}
    assert names >= {"model.safetensors", "ema.safetensors", "optimizer.safetensors", "manifest.json", "metrics.csv"}
    assert wrong(tmp_path, umask) == {}
