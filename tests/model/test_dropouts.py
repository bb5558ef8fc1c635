"""Test where a model applies dropout in training, how often, and which masks are drawn once."""

from typing import Any

import pytest
import torch

from minigpt import GPT, ModelConfig
from minigpt.model.kernels.dropout import dropout, word_dropout

SMALL: dict[str, Any] = {"vocab_size": 40, "embed_dim": 32, "num_heads": 2, "num_layers": 2, "max_seq_len": 16}
TOKENS = torch.randint(40, (3, 16), generator=torch.Generator().manual_seed(1))
PLACES = ("word", "input", "qkv", "attention", "hidden", "block", "output")


def logits(seed: int = 5, attention: str = "sdpa", **settings: Any) -> torch.Tensor:
    """The logits of one pass in training."""
    model = GPT(ModelConfig(**SMALL, attention=attention, **settings), seed=1).train()
    torch.manual_seed(seed)
    return model(TOKENS).detach()


@pytest.mark.parametrize("shape", ["gpt2", "modern"])
@pytest.mark.parametrize("attention", ["reference", "sdpa", "fused"])
def test_dropout_alone_is_input_attention_and_block_dropout(shape: str, attention: str) -> None:
    one = logits(shape=shape, attention=attention, dropout=0.3)
    parts = {"input_dropout": 0.3, "attention_dropout": 0.3, "block_dropout": 0.3}
    assert torch.equal(one, logits(shape=shape, attention=attention, **parts))
    less = logits(shape=shape, attention=attention, dropout=0.3, attention_dropout=0.0)
    assert torch.equal(less, logits(shape=shape, attention=attention, input_dropout=0.3, block_dropout=0.3))
    assert not torch.equal(less, one)


@pytest.mark.parametrize("place", PLACES)
def test_each_place_acts_alone_in_training_only(place: str) -> None:
    plain, changed = logits(), logits(**{f"{place}_dropout": 0.4})
    assert not torch.allclose(plain, changed)
    assert not torch.equal(changed, logits(seed=6, **{f"{place}_dropout": 0.4}))
    model = GPT(ModelConfig(**SMALL, **{f"{place}_dropout": 0.4}), seed=1).eval()
    assert torch.equal(model(TOKENS), GPT(ModelConfig(**SMALL), seed=1).eval()(TOKENS))


@pytest.mark.parametrize("place", ["input", "qkv", "hidden", "block", "output"])
def test_a_locked_place_draws_once_for_all_positions(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.Size] = []
    plain = torch.nn.functional.dropout

    def watched(x: torch.Tensor, probability: float) -> torch.Tensor:
        drawn.append(x.shape)
        return plain(x, probability)

    monkeypatch.setattr("minigpt.model.kernels.dropout.F.dropout", watched)
    free, locked = (logits(**{f"{place}_dropout": 0.4}, locked_dropout=names) for names in ((), (place,)))
    assert not torch.equal(free, locked)
    half = len(drawn) // 2
    assert half and all(before[1] == 16 for before in drawn[:half])
    assert [(each[0], 1, each[2]) for each in drawn[:half]] == [tuple(each) for each in drawn[half:]]


def test_what_is_locked_is_alike_within_a_sequence_and_scaled() -> None:
    torch.manual_seed(2)
    x = torch.ones(200, 7, 50)
    out = dropout(x, 0.25, True, locked=True)
    assert torch.equal(out, out[:, :1].expand_as(out))
    assert not torch.equal(out[0, 0], out[1, 0])
    assert out.unique().tolist() == [0.0, pytest.approx(1 / 0.75)]
    assert (out == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(dropout(x, 0.25, False, locked=True), x)


def test_a_dropped_word_is_gone_in_the_whole_batch() -> None:
    torch.manual_seed(3)
    tokens = torch.randint(500, (40, 30))
    out = word_dropout(torch.ones(40, 30, 4), tokens, 500, 0.2, True)
    gone = [out[tokens == token].unique().numel() for token in tokens.unique()]
    assert set(gone) == {1}, "a token is dropped at all of its positions or at none"
    assert (out == 0).float().mean() == pytest.approx(0.2, abs=0.05)
    assert out.max() == pytest.approx(1.25)


@pytest.mark.slow
def test_compiled_locked_and_word_dropout_keep_their_law() -> None:
    torch.manual_seed(4)
    locked = torch.compile(lambda x: dropout(x, 0.25, True, locked=True))(torch.ones(300, 7, 50))
    assert torch.equal(locked, locked[:, :1].expand_as(locked))
    assert (locked == 0).float().mean() == pytest.approx(0.25, abs=0.02)
    assert locked.mean() == pytest.approx(1.0, abs=0.03)


def test_locked_places_may_be_written_with_commas() -> None:
    assert ModelConfig(**SMALL, locked_dropout="block, input").locked_dropout == ("block", "input")  # type: ignore[arg-type]


def test_a_locked_place_that_does_not_exist_is_named() -> None:
    with pytest.raises(ValueError, match="locked_dropout"):
        ModelConfig(**SMALL, locked_dropout=("attention",))
