"""Test changes to the logits, their order, and whole generations against transformers, penalties against a loop."""

import statistics

import pytest
import torch
import transformers
from foreign_model import twin
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import GenerationError
from minigpt.generation import generate
from minigpt.generation.sampling import NO_RULES, Rules, adjust, probabilities, sample
from minigpt.generation.sampling import processors as ours
from minigpt.model import GPT

VOCAB = 30
SEEDS = st.integers(0, 100_000)
WORDS = ((5,), (3, 4), (1, 2, 3), (6, 7, 8, 9))
many = settings(max_examples=60)


def logits_of(seed: int, rows: int = 4) -> Tensor:
    """[rows, VOCAB], far from flat; float64, so that rounding decides nothing."""
    return 3 * torch.randn(rows, VOCAB, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def history_of(seed: int, length: int, rows: int = 4, kinds: int = 10) -> Tensor:
    """[rows, length] with few kinds of tokens, so that sequences repeat."""
    return torch.randint(kinds, (rows, length), generator=torch.Generator().manual_seed(seed + 1))


def slow_penalties(logits: Tensor, rows: list[list[int]], frequency: float, presence: float) -> Tensor:
    """OpenAI's formula, one token at a time."""
    result = logits.clone()
    for row, generated in enumerate(rows):
        for token in range(logits.shape[1]):
            if token in generated:
                result[row, token] = result[row, token] - generated.count(token) * frequency - presence
    return result


# each function against the class


@many
@given(SEEDS, st.integers(1, VOCAB))
def test_top_k(seed: int, k: int) -> None:
    theirs = transformers.TopKLogitsWarper(k)(None, logits_of(seed))
    assert torch.equal(ours.top_k(logits_of(seed), k), theirs)


@many
@given(SEEDS, st.floats(0.01, 0.999))
def test_top_p(seed: int, p: float) -> None:
    theirs = transformers.TopPLogitsWarper(p)(None, logits_of(seed))
    assert torch.equal(ours.top_p(logits_of(seed), p), theirs)


@many
@given(SEEDS, st.floats(0.001, 1))
def test_min_p(seed: int, p: float) -> None:
    theirs = transformers.MinPLogitsWarper(p)(None, logits_of(seed))
    assert torch.equal(ours.min_p(logits_of(seed), p), theirs)


@many
@given(SEEDS, st.floats(0.01, 0.999), st.integers(0, 20))
def test_typical_p_also_where_tokens_are_banned(seed: int, p: float, banned: int) -> None:
    logits = logits_of(seed)
    logits[:, :banned] = float("-inf")
    theirs = transformers.TypicalLogitsWarper(p)(None, logits)
    assert torch.equal(ours.typical_p(logits, p), theirs)


@many
@given(SEEDS, st.floats(0.3, 3))
def test_temperature(seed: int, temperature: float) -> None:
    theirs = transformers.TemperatureLogitsWarper(temperature)(None, logits_of(seed).float())
    found = probabilities(logits_of(seed), GenerationConfig(temperature=temperature))
    torch.testing.assert_close(found, theirs.softmax(-1))


@many
@given(SEEDS, st.integers(1, 30), st.floats(0.2, 5))
def test_repetition_penalty(seed: int, length: int, penalty: float) -> None:
    logits, history = logits_of(seed), history_of(seed, length)
    theirs = transformers.RepetitionPenaltyLogitsProcessor(penalty)(history, logits)
    assert torch.equal(ours.repetition_penalty(logits, list(history), penalty), theirs)


@many
@given(SEEDS, st.integers(1, 40), st.integers(1, 5))
def test_no_repeat_ngram(seed: int, length: int, size: int) -> None:
    logits, history = logits_of(seed), history_of(seed, length, kinds=3)
    theirs = transformers.NoRepeatNGramLogitsProcessor(size)(history, logits)
    assert torch.equal(ours.no_repeat_ngram(logits, list(history), size), theirs)


def test_bad_words_are_found_in_a_history_shorter_than_the_longest() -> None:
    banned = ours.bad_words(torch.zeros(1, 10), [torch.tensor([1, 2])], [(1, 2, 3), (9, 1, 2, 4), (2, 5), (6,)])
    assert banned[0].isinf().nonzero().flatten().tolist() == [3, 5, 6]


@many
@given(SEEDS, st.integers(1, 6), st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), min_size=1, max_size=9))
def test_bad_words(seed: int, length: int, words: list[list[int]]) -> None:
    logits, history = logits_of(seed), history_of(seed, length, kinds=3)
    theirs = transformers.NoBadWordsLogitsProcessor(words)(history, logits)
    assert torch.equal(ours.bad_words(logits, list(history), words), theirs)


@many
@given(SEEDS, st.dictionaries(st.integers(0, VOCAB - 1), st.floats(-100, 100, width=32), min_size=1))
def test_logit_bias(seed: int, bias: dict[int, float]) -> None:
    theirs = transformers.SequenceBiasLogitsProcessor({(token,): value for token, value in bias.items()})
    assert torch.equal(ours.logit_bias(logits_of(seed), bias), theirs(history_of(seed, 3), logits_of(seed)))


@many
@given(st.integers(1, 5), st.integers(0, 6), st.integers(0, 6), st.integers(0, VOCAB - 1))
def test_min_new_tokens(prompt: int, new: int, least: int, eos: int) -> None:
    theirs = transformers.MinNewTokensLengthLogitsProcessor(prompt, least, eos)
    expected = theirs(history_of(0, prompt + new), logits_of(0))
    assert torch.equal(ours.min_new_tokens(logits_of(0), new, least, eos), expected)


@many
@given(SEEDS, st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(0, 12), st.floats(-2, 2))
def test_frequency_and_presence_count_what_was_generated(
    seed: int, prompts: list[int], new: int, penalty: float
) -> None:
    history = [history_of(seed + row, prompt + new, 1)[0] for row, prompt in enumerate(prompts)]
    logits = logits_of(seed, len(prompts))
    written = [row.tolist()[prompt:] for row, prompt in zip(history, prompts, strict=True)]
    frequency = ours.frequency_penalty(logits, history, new, penalty)
    presence = ours.presence_penalty(logits, history, new, penalty)
    torch.testing.assert_close(frequency, slow_penalties(logits, written, penalty, 0))
    torch.testing.assert_close(presence, slow_penalties(logits, written, 0, penalty))


# the order

ALL_ON = GenerationConfig(
    min_new_tokens=6, repetition_penalty=1.4, frequency_penalty=0.4, presence_penalty=0.7, no_repeat_ngram_size=2,
    temperature=1.7, top_k=18, top_p=0.95, min_p=0.02, typical_p=0.9)  # fmt: skip
RULES = Rules(eos_id=11, bias={0: 2.5, 1: -1.5, 11: 4.0, 12: 1.25}, bad_words=WORDS)
PROMPT = 8


def gpt2() -> tuple[GPT, transformers.GPT2LMHeadModel]:
    """The same weights twice, in float64: ours, and transformers' GPT-2."""
    shape = ModelConfig(
        shape="gpt2", vocab_size=70, embed_dim=32, num_heads=4, num_layers=2, max_seq_len=64, init_std=0.3
    )
    gpt = GPT(shape, seed=4).eval()
    return gpt.double(), twin(gpt).double()


def their_chain() -> transformers.LogitsProcessorList:
    """ALL_ON and RULES as transformers' own `generate` would build them, with our two penalties added as a loop."""

    class Penalties(transformers.LogitsProcessor):
        def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
            written = input_ids[:, PROMPT:].tolist()
            return slow_penalties(scores, written, ALL_ON.frequency_penalty, ALL_ON.presence_penalty)

    config = transformers.GenerationConfig(
        do_sample=True, eos_token_id=RULES.eos_id, bad_words_ids=[list(word) for word in WORDS],
        sequence_bias=[[[token], float(value)] for token, value in RULES.bias.items()],
        **ALL_ON.model_dump(include={"min_new_tokens", "repetition_penalty", "no_repeat_ngram_size"}),
        **ALL_ON.model_dump(include={"temperature", "top_k", "top_p", "min_p", "typical_p"}))  # fmt: skip
    other = gpt2()[1]
    other._prepare_special_tokens(config, device=torch.device("cpu"))
    chain = other._get_logits_processor(config, input_ids_seq_length=PROMPT)
    names = [type(part).__name__ for part in chain]
    assert names == [
        "SequenceBiasLogitsProcessor", "RepetitionPenaltyLogitsProcessor", "NoRepeatNGramLogitsProcessor",
        "NoBadWordsLogitsProcessor", "MinNewTokensLengthLogitsProcessor", "TemperatureLogitsWarper",
        "TopKLogitsWarper", "TopPLogitsWarper", "MinPLogitsWarper", "TypicalLogitsWarper"]  # fmt: skip
    chain.insert(2, Penalties())
    return chain


@pytest.fixture(scope="module")
def chain() -> transformers.LogitsProcessorList:
    return their_chain()


@many
@given(seed=SEEDS, new=st.integers(0, 12))
def test_all_settings_together_act_in_transformers_order(
    chain: transformers.LogitsProcessorList, seed: int, new: int
) -> None:
    logits, history = logits_of(seed).float(), history_of(seed, PROMPT + new)
    found = probabilities(adjust(logits, list(history), new, ALL_ON, RULES), ALL_ON)
    torch.testing.assert_close(found, chain(history, logits).softmax(-1))


def test_bans_penalties_and_filters_all_had_something_to_do() -> None:
    """If one setting is left out, the result changes: so the test above compares all of them."""
    off = {name: GenerationConfig.model_fields[name].default for name in sorted(ALL_ON.model_fields_set)}
    cases = [(ALL_ON.model_copy(update={name: value}), RULES) for name, value in off.items()]
    cases += [(ALL_ON, Rules(11, RULES.bias)), (ALL_ON, Rules(11, bad_words=WORDS))]

    def results(config: GenerationConfig, rules: Rules) -> Tensor:
        histories = [(seed, history_of(seed, PROMPT + 5)) for seed in range(40)]
        return torch.cat([
            probabilities(adjust(logits_of(seed), list(history), 5, config, rules), config)
            for seed, history in histories])  # fmt: skip

    full = results(ALL_ON, RULES)
    changed = [int((results(*case) != full).any(-1).sum()) for case in cases]
    print(f"rows of 160 that each of {len(cases)} settings changes: {changed}")
    assert min(changed) > 0


# whole generations


@pytest.mark.parametrize(
    ("name", "config", "rules", "theirs"),
    [
        ("repetition penalty", {"repetition_penalty": 1.3}, {}, {"repetition_penalty": 1.3}),
        ("no repeated 3-gram", {"no_repeat_ngram_size": 3}, {}, {"no_repeat_ngram_size": 3}),
        ("no repeated token", {"no_repeat_ngram_size": 1}, {}, {"no_repeat_ngram_size": 1}),
        ("bad words", {}, {"bad_words": True}, {"bad_words_ids": True}),
        ("bias", {}, {"bias": {9: 4.0, 12: -7.5}}, {"sequence_bias": [[[9], 4.0], [[12], -7.5]]}),
        ("least length", {"min_new_tokens": 9}, {"eos_id": True}, {"min_new_tokens": 9, "eos_token_id": True}),
    ],
)
def test_greedy_generation_equals_transformers_on_50_prompts(
    name: str, config: dict, rules: dict, theirs: dict
) -> None:
    gpt, other = gpt2()
    prompts = [
        torch.randint(70, (10, length), generator=torch.Generator().manual_seed(length)) for length in range(1, 6)
    ]
    rows = [row for group in prompts for row in group.tolist()]

    def write(eos_id: int | None = None, rules: Rules = NO_RULES, **fields: object) -> list[list[int]]:
        settings = GenerationConfig(max_new_tokens=30, temperature=0, **fields)  # pyright: ignore
        return torch.stack(list(generate(gpt, rows, settings, eos_id, rules=rules)), dim=1).tolist()

    plain, eos = write(), None
    if "bad_words" in rules:  # words that these prompts really lead to: a token, pairs and three in a row
        words = ((plain[0][3],), *(tuple(row[4:6]) for row in plain[10:20]), tuple(plain[30][7:10]))
        rules, theirs = {"bad_words": words}, {"bad_words_ids": [list(word) for word in words]}
    if "eos_id" in rules:  # the token that these prompts lead to most often
        eos = statistics.mode(token for row in plain for token in row[:9])
        rules, theirs, plain = {"eos_id": eos}, {**theirs, "eos_token_id": eos}, write(eos)
    found = write(eos, Rules(**rules), **config)
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": eos or 0, "eos_token_id": None, **theirs}
    expected = []
    for group in prompts:
        ids = other.generate(group, attention_mask=torch.ones_like(group), **options)[:, group.shape[1] :].tolist()
        expected += [row + [eos] * (len(found[0]) - len(row)) for row in ids]  # a group may end before the others
    assert found == expected
    changed = sum(before != after for before, after in zip(plain, found, strict=True))
    print(f"{name}: 50 of 50 rows equal; without the setting, {changed} of them would be others")
    assert changed > 10


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    history = [history_of(row, length + 5, 1)[0] for row, length in enumerate([1, 9, 2, 20])]
    logits = logits_of(8)
    together = adjust(logits, history, 5, ALL_ON, RULES)
    chances = probabilities(together, ALL_ON)
    for row in range(4):
        alone = adjust(logits[row : row + 1], history[row : row + 1], 5, ALL_ON, RULES)
        assert torch.equal(together[row : row + 1], alone)
        torch.testing.assert_close(chances[row : row + 1], probabilities(alone, ALL_ON))


# edges


def test_nothing_is_touched_where_no_setting_asks_for_it() -> None:
    logits, history = logits_of(1).float(), list(history_of(1, 9))
    assert adjust(logits, history, 4, GenerationConfig(min_new_tokens=9), NO_RULES) is logits
    before = logits.clone()
    adjust(logits, history, 4, ALL_ON, RULES)
    assert torch.equal(logits, before)


def test_temperature_0_takes_the_best_of_what_is_allowed() -> None:
    config = GenerationConfig(temperature=0)
    logits = torch.tensor([[1.0, 5.0, 3.0], [5.0, 1.0, 3.0]])
    allowed = adjust(
        logits, list(torch.tensor([[0], [1]])), 0, config, Rules(bias={2: 1.0}, bad_words=((0, 1), (1, 0)))
    )
    assert sample(allowed, config, []).tolist() == [2, 2]
    assert probabilities(allowed, config).tolist() == [[0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize(
    "setting",
    [
        {"temperature": 1e-50},
        {"temperature": 1e30},
        {"top_p": 1e-50},
        {"min_p": 1.0},
        {"min_p": 1e-300},
        {"typical_p": 1e-50},
        {"top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1},
    ],
    ids=str,
)
def test_extreme_settings_keep_a_token_and_give_no_nan(setting: dict) -> None:
    logits = logits_of(2)
    logits[0], logits[1, 1:], logits[2, ::2] = 0.0, float("-inf"), float("-inf")  # flat, one left, half banned
    chances = probabilities(logits, GenerationConfig(**setting))
    torch.testing.assert_close(chances.sum(-1), torch.ones(4))
    assert (chances[logits == float("-inf")] == 0).all()


@pytest.mark.parametrize(
    ("config", "rules", "message"),
    [
        ({}, {"bad_words": tuple((token,) for token in range(VOCAB))}, "no token is left"),
        ({}, {"bias": dict.fromkeys(range(VOCAB), float("-inf"))}, "no token is left"),
        ({"no_repeat_ngram_size": 1}, {}, "no token is left"),
        ({}, {"bias": {3: 1e39}}, "too large"),
        ({"frequency_penalty": 1e39}, {}, "too large"),
        ({}, {"bias": {VOCAB: 1.0}}, "no token 30; ids go from 0 to 29"),
        ({}, {"bad_words": ((1, -1),)}, "bad_words: there is no token -1"),
    ],
)
def test_what_leaves_nothing_to_draw_is_named(config: dict, rules: dict, message: str) -> None:
    history = [torch.tensor([1, 2]), torch.arange(VOCAB)]  # the second row has used every token
    with pytest.raises(GenerationError, match=message):
        adjust(logits_of(3, 2), history, 1, GenerationConfig(**config), Rules(**rules))
