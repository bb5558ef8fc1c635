"""Test beam search against transformers', and against slow searches over every hypothesis."""

import itertools
import math
import random
import time
from collections import Counter
from typing import Any

import pytest
import torch
from foreign_model import twin
from mostly_slow import mostly_slow

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import GenerationError
from minigpt.generation import generate
from minigpt.generation.search import Hypothesis, beam_search
from minigpt.generation.search.beam import scale_and_filter
from minigpt.model import GPT

EOS = 22  # about half of the hypotheses end with this id


def model(vocab_size: int = 70, seed: int = 0, **fields: Any) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    shape = {"embed_dim": 32, "num_heads": 4, "num_layers": 2, "max_seq_len": 64, "init_std": 0.3, **fields}
    return GPT(ModelConfig(shape="gpt2", vocab_size=vocab_size, **shape), seed=seed).eval()


def random_prompts(count: int, vocab_size: int = 70, longest: int = 6) -> list[list[int]]:
    draw = random.Random(5)
    lengths = [1 + i % longest for i in range(count)]
    return [[draw.randrange(vocab_size) for _ in range(length)] for length in lengths]


def greedy_beams(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"temperature": 0, "num_beams": 4, "num_samples": 4, "max_new_tokens": 16, **settings})


def transformers_search(other: Any, prompts: list[list[int]], config: GenerationConfig, eos: int | None) -> list:
    """[(ids without eos, score, ended), ...] of each prompt; prompts of one length go together, so none is padded."""
    found: dict[int, list] = {}
    for length in {len(prompt) for prompt in prompts}:
        places = [place for place, prompt in enumerate(prompts) if len(prompt) == length]
        rows = torch.tensor([prompts[place] for place in places])
        result = other.generate(
            rows,
            attention_mask=torch.ones_like(rows),  # else transformers takes zeros in a prompt for padding
            do_sample=config.temperature > 0,
            eos_token_id=eos,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_scores=True,
            num_return_sequences=config.num_samples,
            max_new_tokens=config.max_new_tokens,
            **{name: getattr(config, name) for name in ("num_beams", "length_penalty", "early_stopping")},
            **{name: getattr(config, name) for name in ("repetition_penalty", "no_repeat_ngram_size")},
            **({"temperature": config.temperature, "top_k": config.top_k} if config.temperature else {}),
        )
        every = []
        for ids, score in zip(result.sequences[:, length:].tolist(), result.sequences_scores.tolist(), strict=True):
            ended = eos in ids
            every.append((ids[: ids.index(eos)] if ended else ids, score, ended))
        for number, place in enumerate(places):
            found[place] = every[number * config.num_samples : (number + 1) * config.num_samples]
    return [found[place] for place in range(len(prompts))]


@pytest.mark.parametrize("number", mostly_slow([4, 1]))
@pytest.mark.parametrize(
    "settings",
    mostly_slow(
        [
            *({"length_penalty": p, "early_stopping": e} for p in (0.6, 1.0, 2.0) for e in (False, True)),
            {"length_penalty": -0.5},
            {"repetition_penalty": 1.3},
            {"no_repeat_ngram_size": 3, "early_stopping": True},
            {"no_repeat_ngram_size": 3, "repetition_penalty": 0.8, "length_penalty": 1.5},
        ],
        [0, 5, 6, 9],
    ),
    ids=str,
)
def test_ids_and_scores_equal_transformers(settings: dict, number: int) -> None:
    gpt, prompts = model(), random_prompts(50, longest=3)
    config = greedy_beams(**settings, num_samples=number)
    ours = beam_search(gpt, prompts, config, EOS)
    theirs = transformers_search(twin(gpt), prompts, config, EOS)
    for mine, other in zip(ours, theirs, strict=True):
        assert [(one.ids, one.ended) for one in mine] == [(ids, ended) for ids, _, ended in other]
        assert [one.score for one in mine] == pytest.approx([score for _, score, _ in other], abs=1e-4)
    every = [one for mine in ours for one in mine]
    short = sum(one.ended for one in every)
    print(f"50 prompts, {len(every)} hypotheses equal; {short} ended early")
    assert 0 < short < len(every)
    for one in every:
        length = len(one.ids) + one.ended
        assert one.score == pytest.approx(one.logprob / length**config.length_penalty)


def test_without_eos_ids_equal_transformers() -> None:
    gpt, prompts, config = model(seed=3), random_prompts(20, longest=3), greedy_beams(num_beams=3, num_samples=3)
    ours = beam_search(gpt, prompts, config)
    theirs = transformers_search(twin(gpt), prompts, config, None)
    assert [[one.ids for one in each] for each in ours] == [[ids for ids, _, _ in each] for each in theirs]
    assert not any(one.ended for each in ours for one in each)


def slow_search(gpt: GPT, prompt: list[int], config: GenerationConfig, eos: int | None) -> list[Hypothesis]:
    """Diverse beam search of one prompt as in the paper: no cache, no batch, every continuation scored and sorted."""
    size, power = config.num_beams // config.num_beam_groups, config.length_penalty
    limit = gpt.config.max_seq_len
    growing = [[(0.0, 0.0, [])] for _ in range(config.num_beam_groups)]  # (worth, logprob, ids) by group
    complete: list[list] = [[] for _ in growing]
    for new in range(1, config.max_new_tokens + 1):
        taken: Counter[int] = Counter()
        for group, beams in enumerate(growing):
            every = []
            for worth, total, ids in beams:
                row = prompt + ids
                while len(row) > limit:  # as in the engine: when the window is full, its older half is dropped
                    row = row[limit // 2 :]
                for token, gain in enumerate(gpt(torch.tensor([row]))[0, -1].log_softmax(-1).tolist()):
                    cost = config.diversity_penalty * taken[token]
                    every.append((worth + gain - cost, total + gain, [*ids, token]))
            every.sort(reverse=True)
            ends = [each for each in every[: 2 * size] if each[2][-1] == eos or new == config.max_new_tokens]
            for worth, total, ids in ends:
                if (worth, total, ids) in every[:size]:
                    ended = ids[-1] == eos
                    done = Hypothesis(ids[:-1] if ended else ids, total / new**power, total, ended)
                    complete[group].append((worth / new**power, done))
            complete[group] = sorted(complete[group], key=lambda each: -each[0])[:size]
            beams[:] = [each for each in every[: 2 * size] if each not in ends][:size]
            full = len(complete[group]) == size
            if full and (config.early_stopping or not beams or beams[0][0] / new**power <= complete[group][-1][0]):
                beams.clear()
            taken.update(ids[-1] for _, _, ids in beams)
    found = [done for group in complete for _, done in group]
    return sorted(found, key=lambda done: -done.score)[: config.num_samples]


def assert_same(found: list[Hypothesis], expected: list[Hypothesis]) -> None:
    assert [(one.ids, one.ended) for one in found] == [(one.ids, one.ended) for one in expected]
    assert [one.score for one in found] == pytest.approx([one.score for one in expected], abs=1e-4)
    assert [one.logprob for one in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_beams": 3, "num_samples": 3, "max_new_tokens": 12},
        {"num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.7},
        {"num_beams": 6, "num_beam_groups": 2, "diversity_penalty": 2.0, "early_stopping": True},
        {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 0.3, "length_penalty": 2.0},
    ],
    ids=str,
)
def test_beams_groups_and_windows_equal_a_slow_search(settings: dict) -> None:
    gpt = model(vocab_size=9, seed=2, max_seq_len=8)
    config = greedy_beams(**{"num_samples": settings["num_beams"], "max_new_tokens": 10, **settings})
    prompts = random_prompts(6, vocab_size=9, longest=6)
    for eos in (3, None):
        found = beam_search(gpt, prompts, config, eos)
        for prompt, each in zip(prompts, found, strict=True):
            assert_same(each, slow_search(gpt, prompt, config, eos))
        assert max(len(one.ids) for each in found for one in each) + 6 > 8, "the context limit is passed"


def test_with_beams_enough_every_hypothesis_is_found() -> None:
    gpt, eos, prompt = model(vocab_size=4, seed=1), 2, [1, 0]
    config = greedy_beams(num_beams=64, num_samples=64, max_new_tokens=3, length_penalty=0.7)
    expected = []
    for length in (1, 2, 3):
        for ids in itertools.product(range(4), repeat=length):
            ended = ids[-1] == eos
            if eos in ids[:-1] or not (ended or length == 3):
                continue
            logprobs = gpt(torch.tensor([[*prompt, *ids]]))[0, 1:-1].log_softmax(-1)  # [length, V]
            total = sum(logprobs[place, token].item() for place, token in enumerate(ids))
            expected.append(Hypothesis(list(ids[: length - ended]), total / length**0.7, total, ended))
    expected.sort(key=lambda one: -one.score)
    found = beam_search(gpt, [prompt], config, eos)[0]
    assert len(found) == 1 + 3 + 9 + 27
    assert_same(found, expected)
    assert sum(math.exp(one.logprob) for one in found) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"position": "rope"}, {}),
        ({"bigrams": 300}, {}),
        ({"position": "learned"}, {"temperature": 0.8, "top_k": 20}),
        ({"position": "sinusoidal"}, {"num_beam_groups": 2, "diversity_penalty": 0.5}),
    ],
)
def test_a_prompt_does_not_depend_on_its_neighbours(fields: dict, settings: dict) -> None:
    fields = {"shape": "modern", "num_heads": 4, "embed_dim": 32, "num_layers": 2, "init_std": 0.3, **fields}
    gpt = GPT(ModelConfig(vocab_size=70, max_seq_len=16, **fields), seed=4).eval()
    prompts = random_prompts(7, longest=7)
    config = greedy_beams(max_new_tokens=25, seed=11, **settings)
    together = beam_search(gpt, prompts, config, EOS)
    for place, prompt in enumerate(prompts):
        assert_same(together[place], beam_search(gpt, [prompt], config, EOS, seeds=[11 + place])[0])


def test_one_beam_is_greedy_and_each_token_is_read_once() -> None:
    gpt, widths = model(), []
    gpt.embedding.register_forward_hook(lambda module, args, output: widths.append(tuple(args[0].shape)))
    found = beam_search(gpt, [[5, 6, 7], [8]], greedy_beams(num_beams=1, num_samples=1))
    read = list(widths)
    greedy = torch.stack(list(generate(gpt, [[5, 6, 7], [8]], greedy_beams(num_beams=1, num_samples=1))), dim=1)
    assert [each[0].ids for each in found] == greedy.tolist()
    assert read == [(2, 3)] + [(2, 1)] * 15
    widths.clear()
    beam_search(gpt, [[5, 6, 7], [8]], greedy_beams(num_beams=5))
    assert widths == [(2, 3)] + [(10, 1)] * 15, "a prompt is read once, whatever the number of beams"


@pytest.mark.parametrize(
    "filters", [{"top_k": 1}, {"top_k": 5, "top_p": 0.7}, {"top_p": 0.01}, {"min_p": 0.2}], ids=str
)
def test_what_is_drawn_from_equals_transformers_warpers_of_beams(filters: dict) -> None:
    from transformers import MinPLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    warpers = {"top_k": TopKLogitsWarper, "top_p": TopPLogitsWarper, "min_p": MinPLogitsWarper}
    logprobs = (torch.randn(40, 30, generator=torch.Generator().manual_seed(1)) * 3).log_softmax(-1)
    expected = logprobs / 1.3
    for name, value in filters.items():
        expected = warpers[name](value, min_tokens_to_keep=2)(None, expected)
    torch.testing.assert_close(scale_and_filter(logprobs, greedy_beams(temperature=1.3, **filters)), expected)


def test_sampled_beams_follow_transformers_law() -> None:
    from scipy.stats import chi2_contingency

    gpt, prompt, runs = model(vocab_size=6, seed=1), [1, 4], 1500
    settings = {"temperature": 2.5, "top_k": 4, "max_new_tokens": 3, "length_penalty": 0.8}
    config = greedy_beams(num_beams=2, num_samples=2, **settings)
    ours = beam_search(gpt, [prompt] * runs, config, 3)
    torch.manual_seed(0)
    theirs = transformers_search(twin(gpt), [prompt] * runs, config, 3)
    assert ours[:20] == beam_search(gpt, [prompt] * 20, config, 3)
    for rank in range(2):
        mine = Counter((tuple(each[rank].ids), each[rank].ended) for each in ours)
        other = Counter((tuple(each[rank][0]), each[rank][2]) for each in theirs)
        common = [key for key in mine | other if mine[key] + other[key] >= 20]
        rest = [runs - sum(counts[key] for key in common) for counts in (mine, other)]
        table = [[counts[key] for key in common] + [left] for counts, left in zip((mine, other), rest, strict=True)]
        chance = chi2_contingency(table).pvalue
        print(f"rank {rank}: {len(common)} kinds of hypotheses in 2 x {runs} draws, p = {chance:.3f}")
        assert len(common) > 10
        assert chance > 0.001
    scores = {(tuple(ids), ended): score for each in theirs for ids, score, ended in each}
    shared = [(one.score, scores.get((tuple(one.ids), one.ended))) for one in itertools.chain(*ours)]
    shared = [(mine, other) for mine, other in shared if other is not None]
    assert len(shared) > runs
    assert [mine for mine, _ in shared] == pytest.approx([other for _, other in shared], abs=1e-4)


def first_tokens(found: list[Hypothesis]) -> set[int]:
    return {one.ids[0] for one in found}


def test_diversity_makes_each_group_differ_from_the_groups_before_it() -> None:
    gpt, prompts = model(seed=5), random_prompts(5)
    plain = [beam_search(gpt, prompts, greedy_beams(num_beams=2, num_samples=2))]

    def search(groups: int, penalty: float) -> list[list[Hypothesis]]:
        beams = {"num_beams": 2 * groups, "num_samples": 2 * groups, "num_beam_groups": groups}
        return beam_search(gpt, prompts, greedy_beams(diversity_penalty=penalty, **beams))

    assert search(1, 3.0) == plain[0]
    for same, each in zip(search(3, 0.0), plain[0], strict=True):
        assert_same(same, sorted(each * 3, key=lambda one: -one.score))
    by_groups = [search(groups, 1.0) for groups in (1, 2, 3, 4)]
    for fewer, more in itertools.pairwise(by_groups):
        for few, many in zip(fewer, more, strict=True):
            assert {tuple(one.ids) for one in few} <= {tuple(one.ids) for one in many}
    strict = beam_search(gpt, prompts, greedy_beams(num_beam_groups=4, diversity_penalty=1000.0))
    assert all(len(first_tokens(each)) == 4 for each in strict), "four groups of one beam: four first tokens"
    firsts = [sum(len(first_tokens(each)) for each in search(4, penalty)) / 5 for penalty in (0.0, 0.5, 2.0)]
    print(f"first tokens of 8 beams in 4 groups at penalties 0, 0.5, 2: {firsts}")
    assert firsts[0] < firsts[1] < firsts[2]


def test_the_deadline_ends_the_search_with_what_there_is() -> None:
    found = beam_search(model(), [[1, 2]], greedy_beams(), EOS, deadline=time.monotonic())
    assert len(found[0]) == 4
    assert all(len(one.ids) + one.ended == 1 for one in found[0])
    later = beam_search(model(), [[1, 2]], greedy_beams(), EOS, deadline=time.monotonic() + 1000)
    assert_same(later[0], beam_search(model(), [[1, 2]], greedy_beams(), EOS)[0])


def test_mistakes_are_named() -> None:
    for prompts in ([], [[1], []]):
        with pytest.raises(GenerationError, match="prompt is empty"):
            beam_search(model(), prompts, greedy_beams())
    with pytest.raises(GenerationError, match="temperature is too low"):
        beam_search(model(), [[1]], greedy_beams(temperature=1e-38))
