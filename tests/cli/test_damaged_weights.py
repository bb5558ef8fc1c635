"""Test that NaN weights end generate, chat, explain and eval with one line, and never with a normal-looking text."""

import io
import shutil
import sys
from pathlib import Path

import pytest
import torch
from cli_run import fails, text
from safetensors.torch import load_file, save_file

from minigpt.cli import main
from minigpt.config import GenerationConfig
from minigpt.errors import CheckpointError
from minigpt.generation.sampling import adjust
from minigpt.generation.sampling.order import NO_RULES

WAYS = ([], ["--temperature", "0"], ["--num-beams", "3"], ["--penalty-alpha", "0.6", "--top-k", "4"],
        ["--prompt-lookup", "3"], ["--best-of", "2"], ["--precision", "int8"])  # fmt: skip


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "model"
    assert main(["export", str(trained), "--out", str(out)]) == 0
    return out


@pytest.mark.parametrize(("value", "places"), [(torch.nan, 1), (torch.inf, None), (-torch.inf, None)])
def test_damaged_weights_are_one_line(exported: Path, tmp_path: Path, capsys, monkeypatch, value, places) -> None:
    shutil.copytree(exported, tmp_path / "bad")
    weights = load_file(tmp_path / "bad" / "model.safetensors")
    weights["model.norm.weight"][:places] = value
    save_file(weights, tmp_path / "bad" / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "cats.txt").write_text(text(100))
    bad = str(tmp_path / "bad")
    for way in WAYS:
        fails(capsys, ["generate", bad, "--prompt", "the cat", *way], "weights are damaged")
    fails(capsys, ["explain", bad, "--prompt", "the cat", "--json"], "weights are damaged")
    fails(capsys, ["eval", bad, "--data", str(tmp_path / "cats.txt")], "weights are damaged")
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n"))
    assert main(["chat", bad]) == 2
    captured = capsys.readouterr()
    assert "weights are damaged" in captured.err
    assert captured.out.strip() == ""


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_one_logit_that_is_not_finite_is_enough(value: float) -> None:
    logits = torch.zeros(3, 50)
    logits[1, 7] = value
    with pytest.raises(CheckpointError, match="weights are damaged"):
        adjust(logits, [torch.tensor([1])] * 3, 0, GenerationConfig(), NO_RULES)
