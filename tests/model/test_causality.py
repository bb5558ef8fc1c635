"""Test that no reported loss uses the future: a prediction that reads only the text before it has the same loss.

A model that leaks the future through its mask, its batches or its evaluation has a very low loss that no generation can
repeat. So the parallel loss over a window is compared with one forward pass per prefix.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from minigpt.cli import main
from minigpt.config import ModelConfig
from minigpt.data import Batches, eval_batches
from minigpt.model import GPT
from minigpt.model.loss import IGNORE
from minigpt.runs.load import load_run

V, T = 31, 12


def loud(model: GPT) -> GPT:
    """Weights so large that any path from one position to another shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model.eval()


def prefix_losses(model: GPT, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Loss in nats of each target [T], each from a pass over only the tokens before it."""
    nats = []
    for end in range(1, len(inputs) + 1):
        logits = model(inputs[None, :end])[0, -1]
        nats.append(-logits.float().log_softmax(-1)[targets[end - 1]])
    return torch.stack(nats)


@pytest.mark.parametrize("kernel", ["reference", "sdpa"])
@pytest.mark.parametrize(
    "fields",
    [
        {"shape": "gpt2"},
        {"shape": "modern", "num_kv_heads": 2},
        {"shape": "modern", "position": "sinusoidal", "activation": "relu2", "tie_embeddings": False},
        {"shape": "modern", "bigrams": 100},
    ],
    ids=["gpt2", "modern", "other", "bigrams"],
)
@torch.no_grad()
def test_the_parallel_loss_equals_that_of_every_prefix_alone(fields: dict, kernel: str) -> None:
    shape = ModelConfig(vocab_size=V, max_seq_len=T, num_layers=2, embed_dim=32, attention=kernel, **fields)
    model = loud(GPT(shape))
    tokens = torch.randint(0, V, (T + 1,), generator=torch.Generator().manual_seed(1))
    inputs, targets = tokens[:-1], tokens[1:]
    alone = prefix_losses(model, inputs, targets)
    together = -model(inputs[None])[0].float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)
    assert model.loss(inputs[None], targets[None], valid=T).item() == pytest.approx(alone.mean().item(), abs=1e-4)


def test_the_audit_finds_a_leak() -> None:
    model = loud(GPT(ModelConfig(vocab_size=V, max_seq_len=T, num_layers=2, embed_dim=32)))
    for block in model.blocks:
        block.attention.kernel = lambda q, k, v, *_: (q @ k.mT).softmax(-1) @ v  # no mask
    tokens = torch.randint(0, V, (T + 1,), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        alone = prefix_losses(model, tokens[:-1], tokens[1:])
        together = model.loss(tokens[None, :-1], tokens[None, 1:], valid=T).item()
    assert abs(together - alone.mean().item()) > 1e-2


def test_no_batch_shows_a_target_before_its_place() -> None:
    tokens = np.arange(1000, dtype=np.uint16)  # every id is its own position
    pairs = [Batches(tokens, 4, 16, seed=3).batch(step) for step in range(20)]
    for inputs, targets in [*pairs, *eval_batches(tokens, 16, 5, 4)]:
        scored = targets != IGNORE
        assert torch.equal(targets[scored], inputs[scored] + 1)


def test_a_trained_run_reports_the_loss_of_its_prefixes(tmp_path: Path) -> None:
    flags = (
        "train stories --data.stories-count 60 --model.embed-dim 32 --model.num-heads 2 --model.num-layers 1 "
        "--model.max-seq-len 16 --train.max-steps 60 --train.eval-every 60 --train.sample-every 0 --train.device cpu "
        "--train.precision fp32 --train.compile off --logging.plots false --name run --optimizer.learning-rate 2e-2"
    ).split()
    assert main([*flags, "--logging.runs-dir", str(tmp_path)]) == 0
    run = load_run(tmp_path / "run", "cpu")
    tokens = run.prepared().splits["val"].tokens
    nats, count = 0.0, 0
    with torch.no_grad():
        for start in range(0, len(tokens) - 1, 16):
            window = torch.from_numpy(np.asarray(tokens[start : start + 17]).astype(np.int64))
            nats += prefix_losses(run.model, window[:-1], window[1:]).sum().item()
            count += len(window) - 1
    last = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()][-1]
    assert count == len(tokens) - 1
    assert last["val_loss"] == pytest.approx(nats / count, abs=1e-4)
    assert last["val_loss"] < math.log(run.tokenizer.vocab_size) - 0.5  # the model has learned something
