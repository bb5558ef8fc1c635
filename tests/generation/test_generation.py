"""Test sampling against Hugging Face's filters, and generation with a cache against generation without."""

from typing import Any

import pytest
import torch
from foreign_model import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import ConfigError, GenerationError
from minigpt.generation import generate, window_start
from minigpt.generation.sampling import probabilities, sample
from minigpt.generation.text import complete, generate_text
from minigpt.model import GPT
from minigpt.tokenizers import ByteTokenizer

SHAPE = ModelConfig(vocab_size=70, embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=16)


def model(**fields) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    return GPT(SHAPE.model_copy(update={"init_std": 0.3, **fields}), seed=4).eval()


def run(gpt: GPT, prompt: list[list[int]], config: GenerationConfig, **options) -> list[list[int]]:
    steps = list(generate(gpt, torch.tensor(prompt), config, **options))
    return torch.stack(steps, dim=1).tolist()


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize(
    "fields", [{"position": "rope"}, {"position": "learned"}, {"position": "sinusoidal"}, {"bigrams": 300}], ids=str
)
@pytest.mark.parametrize("length", mostly_slow([15, 1, 16]))
def test_cached_equals_uncached_token_for_token_across_the_limit(temperature, fields, length) -> None:
    gpt = model(**fields)
    config = GenerationConfig(max_new_tokens=60, temperature=temperature, top_k=20, top_p=0.95, seed=3)
    prompt = [[(7 * i + row) % 70 for i in range(length)] for row in range(3)]
    cached = run(gpt, prompt, config)
    assert cached == run(gpt, prompt, config, use_cache=False)
    assert len(cached[0]) == 60
    assert len({tuple(row) for row in cached}) > 1


@given(st.integers(1, 500), st.integers(1, 64))
def test_window_holds_the_newest_tokens_never_more_than_the_context(length: int, limit: int) -> None:
    start = window_start(length, limit)
    assert 0 < length - start <= limit
    assert start == 0 or length - start >= limit - max(1, limit // 2)
    assert window_start(length + 1, limit) >= start


@settings(max_examples=60)
@given(
    st.integers(0, 10_000), st.sampled_from([0.3, 1.0, 1.7]), st.integers(0, 40), st.sampled_from([0.1, 0.5, 0.9, 1.0])
)
def test_probabilities_equal_hugging_faces_warpers(seed: int, temperature: float, k: int, p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(seed)) * 3
    warped = TemperatureLogitsWarper(temperature)(None, logits)
    if k:
        warped = TopKLogitsWarper(k)(None, warped)
    if p < 1:
        warped = TopPLogitsWarper(p)(None, warped)
    ours = probabilities(logits, GenerationConfig(temperature=temperature, top_k=k, top_p=p))
    torch.testing.assert_close(ours, warped.softmax(-1))


def test_greedy_generation_equals_hugging_faces() -> None:
    gpt = GPT(
        ModelConfig(shape="gpt2", vocab_size=70, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=64, init_std=0.3)
    ).eval()
    prompt = torch.tensor([[5, 6, 7]])
    theirs = twin(gpt).generate(prompt, max_new_tokens=40, do_sample=False, eos_token_id=None, pad_token_id=0)
    ours = run(gpt, prompt.tolist(), GenerationConfig(max_new_tokens=40, temperature=0))
    assert ours[0] == theirs[0, 3:].tolist()


def test_draws_follow_the_distribution() -> None:
    from scipy.stats import chisquare

    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -2.0]])
    config = GenerationConfig(temperature=1.3, top_k=4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.cat([sample(logits, config, [generator]) for _ in range(4000)])
    expected = probabilities(logits, config)[0]
    counts = torch.bincount(draws, minlength=5)
    assert counts[4] == 0
    assert (
        chisquare(counts[:4], expected[:4].double().numpy() / expected[:4].double().sum().item() * 4000).pvalue > 0.001
    )


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    gpt, config = model(), GenerationConfig(max_new_tokens=30, seed=5)
    together = run(gpt, [[1, 2, 3]] * 3, config)
    alone = run(gpt, [[1, 2, 3]], config.model_copy(update={"seed": 7}))
    assert together[2] == alone[0]
    assert together == run(gpt, [[1, 2, 3]] * 3, config)


def test_eos_ends_a_row_and_then_the_generation() -> None:
    gpt, config = model(), GenerationConfig(max_new_tokens=50, temperature=1.5, seed=1)
    free = run(gpt, [[1], [2]], config)
    eos = free[0][4]
    ended = run(gpt, [[1], [2]], config, eos_id=eos)
    for before, after in zip(free, ended, strict=True):
        cut = before.index(eos) + 1 if eos in before else len(before)
        assert after[:cut] == before[: min(cut, len(after))]
        assert set(after[cut:]) <= {eos}
    (longer,) = run(gpt, [[1]], config.model_copy(update={"min_new_tokens": 20}), eos_id=eos)
    assert len(longer) > 20 and eos not in longer[:20]


def test_padded_ids_are_never_drawn() -> None:
    assert max(run(model(), [[1]], GenerationConfig(max_new_tokens=300, temperature=5.0))[0]) < 70


def test_mistakes_are_named() -> None:
    gpt = model()
    with pytest.raises(GenerationError, match="prompt is empty"):
        generate_text(gpt, "", tokenizer=object())  # pyright: ignore
    with pytest.raises(GenerationError, match="no tokenizer"):
        generate_text(gpt, "a")
    with pytest.raises(ConfigError, match="tempratur"):
        generate_text(gpt, "a", tempratur=1)


@pytest.mark.parametrize("search", [{}, {"num_beams": 2}, {"penalty_alpha": 0.5, "top_k": 3}, {"prompt_lookup": 2}])
@pytest.mark.parametrize("id_", [70, 127, -1])  # 70 to 127 are rows of the padded embedding
def test_ids_that_the_model_does_not_have_are_refused(search: dict[str, Any], id_: int) -> None:
    with pytest.raises(GenerationError, match=f"has the id {id_}; this model has the ids 0 to 69"):
        complete(model(), [[1, id_]], ByteTokenizer(), max_new_tokens=2, **search)


def test_prompts_of_one_dimension_are_refused() -> None:
    with pytest.raises(GenerationError, match=r"ids \[B, T\], not \[3\]; one prompt alone is ids\[None\]"):
        next(generate(model(), torch.tensor([1, 0, 3]), GenerationConfig()))
