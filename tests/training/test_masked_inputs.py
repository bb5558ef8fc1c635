"""Test the second loss on masked inputs: what it computes, what it draws, and that a run with it resumes exactly."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from mostly_slow import mostly_slow
from rich.console import Console
from torch.nn.functional import pad

from minigpt import load_config, train
from minigpt.config import ModelConfig
from minigpt.data import Batches
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.model.inputs import MASKED, take_masks
from minigpt.runs import resolve
from minigpt.runtime.autotune import Choice
from minigpt.runtime.device import Runtime, step_seed
from minigpt.runtime.memory_estimate import memory_of_run
from minigpt.runtime.placement import joined, make_placement
from minigpt.training.objective import MaskedInputs, Objective
from minigpt.training.step import accumulate, validation_loss
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState

CPU = Runtime(torch.device("cpu"), "fp32")
SHAPE = ModelConfig(vocab_size=64, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=16, bigrams=65 * 64)
TOKENS = torch.randint(64, (8, 17), generator=torch.Generator().manual_seed(0))
INPUTS, TARGETS = TOKENS[:, :-1], TOKENS[:, 1:]
SECOND = MaskedInputs(0.5, 0.4)
FLAGS: dict[str, Any] = {
    "model.embed_dim": 16, "model.num_heads": 2, "model.num_layers": 1, "model.max_seq_len": 16, "model.dropout": 0.1,
    "model.word_dropout": 0.1, "model.bigrams": 300, "data.source": "stories", "data.stories_count": 30,
    "schedule.warmup_steps": 2, "train.batch_size": 8, "train.eval_every": 3, "train.save_every": 4,
    "train.sample_every": 0, "train.device": "cpu", "train.precision": "fp32", "train.compile": "off",
    "train.max_steps": 9, "train.masked_inputs": 0.6, "train.masked_weight": 0.7, "train.average_last": 0.2,
    "logging.plots": False,
}  # fmt: skip


def model(**settings: Any) -> GPT:
    built = GPT(SHAPE.model_copy(update=settings), seed=1)
    take_masks(built, built.config)
    return built


def gradients(of: GPT) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in of.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("size", [8, 2])
def test_the_gradient_is_of_the_sum_and_the_value_of_the_plain_loss(size: int) -> None:
    built = model()
    parts = list(zip(INPUTS.split(size), TARGETS.split(size), strict=True))
    loss = accumulate(cast(Any, Objective(built, SECOND)), parts, runtime=CPU, step=3, seed=7)
    found = gradients(built)
    built.zero_grad()
    for number, (inputs, targets) in enumerate(parts):
        torch.manual_seed(step_seed(7, 3, 0, number))
        masked = SECOND.mask(inputs)
        for weight, seen in ((1.0, inputs), (0.4, masked)):
            (weight * built.loss(seen, targets, valid=TARGETS.numel())).backward()
    for name, gradient in gradients(built).items():
        torch.testing.assert_close(found[name], gradient, atol=1e-7, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(loss, built.loss(INPUTS, TARGETS, valid=TARGETS.numel()))


def test_a_masked_token_cannot_be_read_and_all_others_are() -> None:
    built = model().eval()
    masked = INPUTS.clone()
    masked[:, 5] = MASKED
    stream = built.embed(masked, slice(16))
    assert (stream[:, 5] == 0).all(), "no embedding of the token, and no pair with it"
    alone = built.embedding(INPUTS[:, 6])
    torch.testing.assert_close(stream[:, 6], alone, atol=0, rtol=0)  # a pair with a masked token has no row either
    plain = GPT(built.config, seed=1).eval().embed(INPUTS, slice(16))
    others = [0, 1, 2, 3, 4, 7, 8, 15]
    assert torch.equal(stream[:, others], plain[:, others])
    assert not torch.equal(stream[:, 6], plain[:, 6])


def test_swapped_embeddings_compute_and_save_what_the_plain_ones_do() -> None:
    for tied in (True, False):
        plain, swapped = (GPT(SHAPE.model_copy(update={"tie_embeddings": tied}), seed=1) for _ in range(2))
        take_masks(swapped, swapped.config)
        assert torch.equal(plain(INPUTS), swapped(INPUTS))
        assert plain.weights().keys() == swapped.weights().keys()
        assert (swapped.head.weight is swapped.embedding.weight) == tied


def test_shares_are_drawn_evenly_for_each_sequence() -> None:
    torch.manual_seed(5)
    tokens = torch.ones(4000, 200, dtype=torch.long)
    share = (MaskedInputs(0.5, 0.4).mask(tokens) == MASKED).float().mean(1)
    assert share.mean() == pytest.approx(0.25, abs=0.01)
    assert torch.quantile(share, torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.125, 0.375], abs=0.02)
    assert share.max() < 0.65
    gap = pad((MaskedInputs(0.5, 0.4).mask(tokens[:1]) == MASKED)[0].long(), (1, 1)).diff()
    assert (gap == 1).sum() > 5, "masks are at many places, not in one piece"


def test_evaluation_masks_nothing() -> None:
    built = model(word_dropout=0.2)
    expected = validation_loss(GPT(built.config, seed=1), [(INPUTS, TARGETS)], CPU)
    assert validation_loss(built, [(INPUTS, TARGETS)], CPU) == expected


def trained(folder: Path, name: str, more: dict[str, Any], resume: bool = False) -> Path:
    settings = FLAGS | {"logging.runs_dir": str(folder)} | more
    return train(load_config(None, settings), name=name, resume=resume, quiet=True).path


@pytest.mark.parametrize("micro", mostly_slow([4, 8]))
def test_a_run_that_is_resumed_ends_with_the_same_bits(micro: int, tmp_path: Path) -> None:
    def tensors(path: Path) -> dict[str, torch.Tensor]:
        parts = checkpoint.load(path / "checkpoints/last", ("model", "ema", "optimizer")).tensors
        return {f"{part} {name}": tensor for part, named in parts.items() for name, tensor in named.items()}

    kind = {"train.micro_batch_size": micro, "schedule.kind": "constant"}
    whole = tensors(trained(tmp_path, "whole", kind))
    trained(tmp_path, "parts", kind | {"train.max_steps": 5})
    again = tensors(trained(tmp_path, "parts", kind, resume=True))
    assert whole.keys() == again.keys()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())
    assert not torch.equal(whole["ema embedding.weight"], whole["model embedding.weight"])
    plain = tensors(trained(tmp_path, "plain", kind | {"train.masked_inputs": 0}))
    assert not torch.equal(plain["model embedding.weight"], whole["model embedding.weight"])


def test_the_second_pass_is_counted_when_compiling_is_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[float] = []

    def choose(shape: ModelConfig, runtime: Runtime, compile: str, batch: int, times: float, say: object) -> Choice:
        passes.append(times)
        return Choice("sdpa", False)

    monkeypatch.setattr(resolve, "choose", choose)
    batches, fixed = Batches(TOKENS.flatten().numpy(), 8, 16, 0), FLAGS | {"model.vocab_size": 64}
    for share in (0, 0.5):
        config = load_config(None, fixed | {"train.masked_inputs": share, "train.micro_batch_size": 4})
        resolve.pick_kernels(config, batches, CheckpointState(), Console(quiet=True), make_placement(config))
    assert passes == [9 * 2, 9 * 2 * 2], "9 steps of 2 micro-batches"


def test_the_second_pass_is_counted_in_the_memory() -> None:
    shape = {"model.vocab_size": 64, "train.device": "cpu", "train.precision": "fp32"}
    one, two = (memory_of_run(load_config(None, shape | {"train.masked_inputs": share})) for share in (0, 0.5))
    assert two.activations > 1.8 * one.activations


def test_a_model_in_parts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load_config(None, {"parallel.kind": "fsdp", "train.masked_inputs": 0.5, "train.device": "cpu"})
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"train.masked_inputs: goes with parallel.kind ddp"), joined(config):
        pass
