"""Test that kinds of heads are found where they were planted or learned, and nowhere else."""

import numpy as np
import pytest
import torch

from minigpt.config import ModelConfig, OptimizerConfig
from minigpt.errors import UserError
from minigpt.explanation import measure_heads
from minigpt.explanation.heads import KINDS, places, score_heads
from minigpt.model import GPT
from minigpt.model.loss import IGNORE, next_token_loss
from minigpt.training import make_optimizer

SMALL = ModelConfig(shape="modern", vocab_size=32, embed_dim=64, num_heads=4, num_layers=2, max_seq_len=48)


def test_the_places_of_each_kind_are_where_a_hand_puts_them():
    found = places(np.array([5, 6, 7, 5, 6]))
    where = {kind: [(int(t), int(s)) for t, s in zip(*np.nonzero(mask), strict=True)] for kind, mask in found.items()}
    assert where == {
        "previous_token": [(1, 0), (2, 1), (3, 2), (4, 3)],
        "first_token": [(2, 0), (3, 0), (4, 0)],
        "duplicate_token": [(3, 0), (4, 1)],
        "induction": [(3, 1), (4, 2)],
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_pure_head_scores_one_for_its_kind_and_low_for_others(kind: str):
    tokens = np.tile(np.random.default_rng(0).permutation(20), 2)
    mask = places(tokens)[kind].astype(np.float32)
    idle = mask.sum(1) == 0
    mask[idle, np.flatnonzero(idle)] = 1  # a token with nothing to look at looks at itself
    scores = score_heads((mask / mask.sum(1, keepdims=True))[None, None], tokens)
    assert scores[kind][0, 0] == 1
    assert all(scores[other][0, 0] < 0.5 for other in KINDS if other != kind)


def test_a_score_without_a_place_in_the_text_is_nan():
    scores = score_heads(np.full((1, 1, 3, 3), 1 / 3, np.float32), np.array([1, 2, 3]))
    assert np.isnan(scores["induction"]) and np.isnan(scores["duplicate_token"])
    assert scores["previous_token"] == pytest.approx(1 / 3)


def test_an_untrained_model_has_no_named_head_and_scores_near_chance():
    heads = measure_heads(GPT(SMALL, seed=3))
    highest = {kind: round(float(heads.scores[kind].max()), 3) for kind in KINDS}
    print(f"untrained: {highest}, chance { ({kind: round(chance, 3) for kind, chance in heads.chance.items()}) }")
    assert heads.names() == [[None] * 4] * 2
    for kind in KINDS:
        assert heads.scores[kind].shape == (2, 4)
        assert abs(heads.scores[kind] - heads.chance[kind]).max() < 0.05
    assert (heads.length, heads.sequences) == (48, 8)  # 64 tokens do not fit into the context


def test_excluded_ids_are_not_drawn_and_a_tiny_model_is_an_error():
    model = GPT(SMALL)
    seen: list[torch.Tensor] = []
    model.embedding.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    measure_heads(model, exclude=range(8))
    assert seen[0].min() == 8 and seen[0].max() == 31
    with pytest.raises(UserError, match="4 ids"):
        measure_heads(model, exclude=range(29))


@pytest.mark.slow
def test_an_induction_head_is_found_in_a_model_trained_to_have_one():
    shape = SMALL.model_copy(update={"vocab_size": 16, "embed_dim": 32, "num_heads": 2, "tie_embeddings": False})
    model, generator = GPT(shape, seed=1), torch.Generator().manual_seed(0)
    settings = OptimizerConfig(kind="muon", learning_rate=0.02, adamw_ratio=0.25)
    optimizer, scores = make_optimizer(model, settings, "fp32"), []
    for step in range(1, 301):
        # Random tokens that repeat after 4 to 15: only an earlier copy shows what follows
        period = int(torch.randint(4, 16, (), generator=generator))
        rows = torch.rand(32, 16, generator=generator).argsort(1)[:, :period].repeat(1, 32 // period + 1)[:, :33]
        targets = rows[:, 1:].clone()
        targets[:, : period - 1] = IGNORE
        loss = next_token_loss(model(rows[:, :-1]), targets)
        model.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 25 == 0:
            heads = measure_heads(model)
            scores.append(round(float(heads.scores["induction"].max()), 2))
            if scores[-1] > 0.6:
                break
    named = heads.names()
    print(f"step {step}, loss {loss:.3f}, induction every 25 steps: {scores}; named: {named}")
    assert "induction" in named[1]
    assert "induction" not in named[0], "induction needs a layer before it, which finds the token before each token"
    assert heads.scores["previous_token"][0].max() > 0.3
