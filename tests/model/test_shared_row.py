"""Test the row that unused ids share: loss and gradients against a model whose rows are equal, and whole runs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minigpt import evaluate_run, load_config, load_run, train
from minigpt.config import ModelConfig, RunConfig
from minigpt.data.counts import used_ids
from minigpt.files import read_lines
from minigpt.layout import RunFolder
from minigpt.model import GPT
from minigpt.model.heads import Mixture, output_matrix
from minigpt.model.loss import IGNORE
from minigpt.model.shared_row import SharedRow
from minigpt.runs import resolve
from minigpt.runs.budget.within import plan_within
from minigpt.tokenizers import WordTokenizer

V = 150
USED = np.isin(np.arange(V), [*range(3, 80), 99, 140])


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.from_numpy(np.random.default_rng(0).choice(np.flatnonzero(USED), (3, 17)))
    targets = ids[:, 1:].clone()
    targets[0, 4] = IGNORE
    return ids[:, :-1], targets


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("softmaxes", [1, 3])
def test_loss_and_gradients_are_those_of_equal_rows(softmaxes: int, tied: bool) -> None:
    shape = ModelConfig(
        vocab_size=V, embed_dim=32, num_heads=2, num_layers=1, init_std=0.2, softmaxes=softmaxes, tie_embeddings=tied
    )
    model, shared = GPT(shape, seed=1), SharedRow.of(USED)
    assert (shared.count, len(shared.rows), len(shared.others)) == (80, 128, 71)
    shared.tie(model.head)
    ids, targets = batch()
    whole = model.loss(ids, targets, valid=47)

    # The readable form: a table of row numbers makes equal rows of one, and autograd adds up the gradient of all.
    table = torch.arange(V)
    table[shared.others] = shared.others[0]
    hidden, head = model.hidden(ids), model.head
    weight = output_matrix(head).weight[table]
    if isinstance(head, Mixture):
        turned, shares = head.turned(hidden)
        logits = torch.logsumexp((turned @ weight.T).log_softmax(-1) + shares, -2)
    else:
        logits = hidden @ weight.T
    plain = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="sum") / 47
    expected = torch.autograd.grad(plain, list(model.parameters()))

    model.shared = shared
    loss = model.loss(ids, targets, valid=47)
    torch.testing.assert_close(loss, whole)
    torch.testing.assert_close(loss, plain)
    for found, wanted in zip(torch.autograd.grad(loss, list(model.parameters())), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-4)
    model.eval()
    ids[0, 0] = targets[1, 1] = int(shared.others[5])  # evaluations know all ids
    assert torch.equal(model.loss(ids, targets, valid=47), unshared(model).loss(ids, targets, valid=47))


def unshared(model: GPT) -> GPT:
    copy = GPT(model.config)
    copy.load_weights(model.weights())
    return copy.eval()


def test_used_ids_stops_early() -> None:
    tokens = np.array([5, 3, 5, 0], np.uint16)
    found = used_ids(tokens, 7, 3)
    assert found is not None and found.tolist() == [True, False, False, True, False, True, False]
    assert used_ids(tokens, 7, 2) is None


@pytest.fixture
def small_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A text of 40 words, and a tokenizer of 200."""
    monkeypatch.setattr(resolve, "LEAST_UNUSED", 100)
    words = [f"word{number}" for number in range(200)]
    WordTokenizer.from_texts([" ".join(words)]).save(tmp_path / "tokenizer.json")
    draws = np.random.default_rng(0).integers(0, 40, 3000)
    (tmp_path / "text.txt").write_text(" ".join(words[number] for number in draws))
    return tmp_path


def settings(folder: Path, **train_settings: Any) -> RunConfig:
    values = {
        "model.embed_dim": 32,
        "model.num_heads": 2,
        "model.num_layers": 1,
        "model.max_seq_len": 16,
        "tokenizer.path": str(folder / "tokenizer.json"),
        "data.source": str(folder / "text.txt"),
        "data.cache_dir": str(folder / "cache"),
        "logging.runs_dir": str(folder / "runs"),
        "logging.log_every": 1,
    }
    steps = {"max_steps": 6, "batch_size": 4, "save_every": 3, "sample_every": 0, **train_settings}
    return load_config(None, values | {f"train.{name}": value for name, value in steps.items()})


@pytest.mark.parametrize("more", [{}, {"ema_decay": 0.9}, {"masked_inputs": 0.5}])
def test_a_run_keeps_its_rows_equal_and_resumes_exactly(small_text: Path, more: dict[str, Any]) -> None:
    whole = train(settings(small_text, **more), name="whole", quiet=True)
    others = whole.tokenizer.encode(" ".join(f"word{number}" for number in range(40, 200)))
    rows = whole.model.embedding.weight.detach()[others]
    assert torch.equal(rows, rows[:1].expand(160, -1))
    assert whole.model.shared is None

    report = evaluate_run(load_run(whole.path))
    assert report["loss"] == pytest.approx(read_lines(RunFolder(whole.path).metrics)[-1]["val_loss"], abs=1e-5)

    train(settings(small_text, **more, max_steps=3), name="cut", quiet=True)
    again = train(settings(small_text, **more), name="cut", quiet=True, resume=True)
    assert all(torch.equal(again.model.weights()[name], tensor) for name, tensor in whole.model.weights().items())


def test_a_budget_is_planned_with_the_logits_that_a_step_computes(small_text: Path) -> None:
    given = {
        "model.embed_dim": 32,
        "model.num_layers": 1,
        "tokenizer.path": str(small_text / "tokenizer.json"),
        "data.source": str(small_text / "text.txt"),
        "data.cache_dir": str(small_text / "cache"),
        "train.device": "cpu",
        "train.precision": "fp32",
    }
    few, all_ = (plan_within("1e9flops", given | {"train.share_unused": on}, quiet=True) for on in (True, False))
    assert few.plan.config.model.vocab_size == all_.plan.config.model.vocab_size == 202
    assert few.report["parameters"] == all_.report["parameters"]
    assert few.plan.steps > 1.2 * all_.plan.steps


@pytest.mark.parametrize("more", [{"share_unused": False}, {"label_smoothing": 0.1}])
def test_rows_stay_apart_where_they_should(small_text: Path, more: dict[str, Any]) -> None:
    run = train(settings(small_text, **more), name="apart", quiet=True)
    assert not torch.equal(run.model.embedding.weight[150], run.model.embedding.weight[151])
