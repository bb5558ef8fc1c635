"""Test that a checkpoint's state is read as it was written, and that an unknown or missing field is one clear error."""

import json
from dataclasses import fields
from pathlib import Path

import pytest

from minigpt.errors import CheckpointError
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, RecoveryState, TrainState, read_state

FULL = CheckpointState(
    model={"embed_dim": 8, "norm": "layernorm"},
    train=TrainState(
        step=7, tokens=896, seconds=1.5, val_loss=2.25, eval_step=6, best_loss=2.0, best_step=3, evals_since_best=1,
        evals_since_cut=2, cuts=1, finished=True, stop_reason="budget used up", scaler={"scale": 1024.0},
        micro_batch_size=2, skipped=[4, 9], rate_scale=0.5, decay_after_warmup=True, unlogged=[[2.5, 0.25]],
        averaged=5,
    ),
    tokenizer="abc",
    precision="bf16",
    attention="sdpa",
    compile=False,
    micro_batch_size=4,
    lora={"rank": 3},
    base={"path": "runs/base", "sha256": "0f"},
    recovery=RecoveryState([2.5, 2.25], [], 4.5, 1, 2, 3),
    quantization={"bits": 4, "group": 32, "embedding_bits": 8, "source": "runs/my"},
)  # fmt: skip


def test_every_field_comes_back_from_the_disk(tmp_path: Path) -> None:
    assert all(getattr(FULL, field.name) is not None for field in fields(FULL))
    assert all(getattr(FULL.train, field.name) != field.default for field in fields(TrainState))
    saved = checkpoint.save(tmp_path / "step-00000007", {"model": {}}, FULL)
    assert read_state(saved) == checkpoint.load(saved, ()).state == FULL


def test_the_file_holds_what_is_known_under_the_same_names(tmp_path: Path) -> None:
    saved = checkpoint.save(tmp_path / "step-00000007", {"model": {}}, CheckpointState(model={}, precision="fp32"))
    assert json.loads((saved / "state.json").read_text()) == {
        "model": {},
        "precision": "fp32",
        "micro_batch_size": None,
    }
    assert list(FULL.to_json()) == [field.name for field in fields(CheckpointState)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, r"has modle, .* \(did you mean model\?\)"),
        ({"train": {"step": 3, "best_los": 1.0}}, r"has train\.best_los, .* \(did you mean best_loss\?\)"),
        ({"recovery": {"strike": 1}}, r"has recovery\.strike, .* \(did you mean streak\?\)"),
        ({"train": {"tokens": 3}}, r"lacks train\.step; use the version of minigpt that wrote it"),
        ({"train": [3]}, "train is not an object"),
        ({"model": None, "lora": None}, "lacks model"),
        ({"train": {"step": "three"}}, r"train\.step is wrong \(Input should be a valid integer"),
        ({"train": {"step": 3, "skipped": {"4": 9}}}, r"train\.skipped is wrong .* use another checkpoint"),
        ({"recovery": {"bad": [[1, 2], 7]}}, r"recovery\.bad\.1 is wrong"),
        ({"model": []}, "model is wrong"),
        ({"base": {"path": 7, "sha256": "0f"}}, r"base\.path is wrong"),
    ],
)
def test_an_unknown_or_missing_field_is_named(change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=rf"^runs/my/state\.json: {message}"):
        CheckpointState.from_json({**json.loads(json.dumps(FULL.to_json())), **change}, "runs/my/state.json")


def test_an_older_state_without_newer_fields_is_read() -> None:
    old = CheckpointState.from_json({"model": {"embed_dim": 8}, "train": {"step": 3}}, "state.json")
    assert old == CheckpointState(model={"embed_dim": 8}, train=TrainState(step=3))


def test_weights_alone_cannot_be_trained_on() -> None:
    with pytest.raises(CheckpointError, match="has only weights"):
        _ = checkpoint.Checkpoint(Path("x"), {}, CheckpointState(model={})).train
