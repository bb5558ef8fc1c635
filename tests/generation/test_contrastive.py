"""Test that contrastive search equals a slow search that reads the whole text again with transformers' model."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from foreign_model import twin
from mostly_slow import mostly_slow

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import GenerationError
from minigpt.generation import generate, window_start
from minigpt.generation.sampling import Rules
from minigpt.generation.search import contrastive_search
from minigpt.model import GPT

PROMPTS = [[5, 6, 7], [8], [1, 2, 3, 4, 5, 6, 7, 8], [9] * 12]


def model(max_seq_len: int = 64, **fields: Any) -> GPT:
    shape = {"shape": "gpt2", "embed_dim": 32, "num_heads": 4, "num_layers": 2, "init_std": 0.3, **fields}
    return GPT(ModelConfig(vocab_size=70, max_seq_len=max_seq_len, **shape), seed=1).eval()


def configured(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"top_k": 5, "penalty_alpha": 0.6, "max_new_tokens": 25, **settings})


def run(gpt: GPT, prompts: list[list[int]], config: GenerationConfig, eos: int | None = None, **options: Any) -> list:
    return torch.stack([step.ids for step in contrastive_search(gpt, prompts, config, eos, **options)], dim=1).tolist()


def run_greedy(gpt: GPT, prompts: list[list[int]]) -> list:
    return torch.stack(list(generate(gpt, prompts, configured(temperature=0))), dim=1).tolist()


@torch.inference_mode()
def slow_search(other: Any, prompt: list[int], config: GenerationConfig) -> list[int]:
    """The formula, candidate by candidate: no cache, no batch."""
    ids, limit = list(prompt), other.config.n_positions
    for _ in range(config.max_new_tokens):
        start = window_start(len(ids), limit)
        chances = other(torch.tensor([ids[start:]])).logits[0, -1].softmax(-1)
        worths = {}
        for token in chances.topk(config.top_k).indices.tolist():
            start = window_start(len(ids) + 1, limit)
            states = other(torch.tensor([[*ids[start:], token]]), output_hidden_states=True).hidden_states[-1][0]
            likeness = F.cosine_similarity(states[-1:], states[:-1]).max().item()
            worths[token] = (1 - config.penalty_alpha) * chances[token].item() - config.penalty_alpha * likeness
        ids.append(max(worths, key=lambda token: worths[token]))
    return ids[len(prompt) :]


@pytest.mark.parametrize(("alpha", "top_k", "max_seq_len"), mostly_slow([(0.6, 4, 12), (0.6, 5, 64), (0.3, 3, 64)]))
def test_ids_equal_a_slow_transformers_search_past_the_context_too(alpha, top_k, max_seq_len) -> None:
    gpt, config = model(max_seq_len), configured(penalty_alpha=alpha, top_k=top_k)
    other = twin(gpt)
    found = run(gpt, PROMPTS, config)
    assert found == [slow_search(other, prompt, config) for prompt in PROMPTS]
    greedy = run_greedy(gpt, PROMPTS)
    differ = sum(mine != plain for a, b in zip(found, greedy, strict=True) for mine, plain in zip(a, b, strict=True))
    print(f"4 prompts x 25 tokens equal; {differ} of 100 differ from greedy")
    assert differ > 10


def test_without_the_penalty_it_is_greedy_and_each_token_is_read_once() -> None:
    gpt, widths = model(), []
    gpt.embedding.register_forward_hook(lambda module, args, output: widths.append(tuple(args[0].shape)))
    found = run(gpt, [[5, 6, 7]], configured(penalty_alpha=0.0))
    assert widths == [(1, 3)] + [(5, 1)] * 25
    assert found == run_greedy(gpt, [[5, 6, 7]])


def test_a_window_of_one_token_has_nothing_to_be_like() -> None:
    gpt = model(max_seq_len=1)
    assert run(gpt, PROMPTS, configured()) == run_greedy(gpt, PROMPTS)


@pytest.mark.parametrize("fields", [{"position": "rope"}, {"position": "sinusoidal"}, {"bigrams": 300}], ids=str)
def test_a_prompt_does_not_depend_on_its_neighbours(fields: dict) -> None:
    gpt, config = model(16, shape="modern", **fields), configured(max_new_tokens=30)
    assert run(gpt, PROMPTS, config) == [run(gpt, [prompt], config)[0] for prompt in PROMPTS]


def test_eos_ends_a_row_and_then_the_search_and_so_does_the_caller() -> None:
    gpt, config = model(), configured()
    free = run(gpt, PROMPTS[:2], config)
    eos = next(token for token in free[0] if token in free[1])
    ended = run(gpt, PROMPTS[:2], config, eos)
    cuts = [row.index(eos) + 1 for row in free]
    assert len(ended[0]) == max(cuts) < 25
    for before, after, cut in zip(free, ended, cuts, strict=True):
        assert after == before[:cut] + [eos] * (max(cuts) - cut)
    flags = torch.zeros(2, dtype=torch.bool)
    search = contrastive_search(gpt, PROMPTS[:2], config, 69, ended=flags)
    first = next(search)
    flags[0] = True
    second = next(search)
    assert first.ids.tolist() == [row[0] for row in free]
    assert second.ids.tolist() == [69, free[1][1]]
    flags[1] = True
    assert [step.ids.tolist() for step in search] == []


def test_a_banned_token_is_not_chosen_even_if_it_contrasts_most() -> None:
    gpt, prompt = model(), [[5, 6, 7]]
    config = configured(top_k=70, penalty_alpha=1.0)
    free = run(gpt, prompt, config)[0]
    rules = Rules(bias={token: float("-inf") for token in set(free)})
    bound = run(gpt, prompt, config, rules=rules)[0]
    assert len(bound) == 25
    assert not set(bound) & set(free)


def test_the_logits_of_a_step_are_those_that_it_was_chosen_from() -> None:
    gpt = model()
    steps = list(contrastive_search(gpt, [[5, 6, 7]], configured(max_new_tokens=6)))
    ids = [5, 6, 7, *(int(step.ids) for step in steps)]
    whole = gpt(torch.tensor([ids]))[0]  # [9, V]
    torch.testing.assert_close(torch.cat([step.logits for step in steps]), whole[2:8], atol=1e-4, rtol=1e-4)


def test_mistakes_are_named() -> None:
    for prompts in ([], [[1], []]):
        with pytest.raises(GenerationError, match="prompt is empty"):
            next(contrastive_search(model(), prompts, configured()))
