"""Test that speculative decoding writes what plain generation writes: the same greedy tokens, the same distribution.

The distribution is tested on a table of known probabilities, which is fast, and (slow) on real models. A rule that is
wrong in any of the usual ways must fail the same test.
"""

import copy
import itertools
import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from mostly_slow import mostly_slow
from scipy.stats import chisquare
from torch import Tensor

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import GenerationError
from minigpt.generation import generate
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.generation.sampling import Rules, adjust, draw, probabilities
from minigpt.generation.search import LookupDrafter, ModelDrafter, speculate, speculative
from minigpt.generation.search.speculative import Draft, Sampling, common, latest_occurrence
from minigpt.model import GPT

SHAPE = ModelConfig(
    vocab_size=70, embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=16, init_std=0.3
)
PROMPTS = ([3], [5, 6, 7, 5, 6], [i % 4 for i in range(16)], list(range(40)))
V = 8
BOLD = GenerationConfig(max_new_tokens=3, temperature=0.8, top_k=6, top_p=0.95)
PENALTIES = BOLD.model_copy(update={"repetition_penalty": 1.4, "presence_penalty": 1.0})
START = [1, 2, 5, 1, 2]  # prompt look-up guesses 5 1


def model(seed: int = 4, **fields: object) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    return GPT(SHAPE.model_copy(update=fields), seed=seed).eval()


def near(gpt: GPT, noise: float) -> GPT:
    """The same model with other weights: it guesses well, not always."""
    other, generator = GPT(gpt.config).eval(), torch.Generator().manual_seed(8)
    weights = {k: v + noise * torch.randn(v.shape, generator=generator) for k, v in gpt.weights().items()}
    other.load_weights(weights)
    return other


def plain(gpt: GPT, prompt: list[int], config: GenerationConfig, **options) -> list[int]:
    return [int(step) for step in generate(gpt, [prompt], config, **options)]


def flat(passes: list[list[int]]) -> list[int]:
    return [token for ids in passes for token in ids]


class Table:
    """A model that depends only on the last two tokens, [V, V, V] logits; like GPT it sees only new or cached
    tokens.
    """

    def __init__(self, table: Tensor, limit: int = 32):
        self.table, self.config = table, SimpleNamespace(vocab_size=V, max_seq_len=limit)
        self.embedding = SimpleNamespace(weight=table)

    def make_cache(self) -> SimpleNamespace:
        return SimpleNamespace(length=0, ids=torch.zeros(self.config.max_seq_len, dtype=torch.long))

    def hidden(self, tokens: Tensor, cache: SimpleNamespace) -> Tensor:
        end = cache.length + tokens.shape[1]
        cache.ids[cache.length : end] = tokens[0]
        held, cache.length = cache.ids[:end], end
        before = torch.cat([held[:1], held[:-1]])
        return self.table[before, held][None, -tokens.shape[1] :]  # [1, T, V]

    def head(self, hidden: Tensor) -> Tensor:
        return hidden


def table(seed: int, like: Tensor | None = None) -> Tensor:
    """Logits [V, V, V]; near those of `like`."""
    noise = torch.randn(V, V, V, generator=torch.Generator().manual_seed(seed))
    return 1.5 * noise if like is None else like + 0.7 * noise


TARGET = table(0)
DRAFTERS = {
    "good": lambda: ModelDrafter(Table(table(1, TARGET)), 2),  # pyright: ignore
    "bad": lambda: ModelDrafter(Table(table(2)), 2),  # pyright: ignore
    "lookup": lambda: LookupDrafter(2),
}


def exact_pairs(logits_after, config: GenerationConfig) -> dict[tuple[int, int], float]:
    """Probability of each first two tokens, from the logits after a text."""

    def chances(*new: int) -> list[float]:
        text = torch.tensor([*START, *new])
        return probabilities(adjust(logits_after(text)[None], [text], len(new), config, Rules()), config)[0].tolist()

    first = chances()
    seconds = {a: chances(a) for a in range(V) if first[a]}
    return {(a, b): first[a] * seconds[a][b] for a in seconds for b in range(V) if seconds[a][b]}


def law_pvalue(gpt, drafter, expected: dict[tuple[int, int], float], config: GenerationConfig, draws: int) -> float:
    """The p-value of the hypothesis that speculative decoding draws first two tokens with these probabilities."""
    counts: Counter[tuple[int, ...]] = Counter()
    for seed in range(draws):
        ids: list[int] = []
        for chosen in speculate(gpt, START, config, drafter, seed=seed):
            ids += chosen
            if len(ids) >= 2:
                break
        counts[tuple(ids[:2])] += 1
    assert counts.keys() <= expected.keys(), "a pair that plain sampling never draws"
    ordered = sorted(expected, key=lambda pair: expected[pair])
    cells: list[list[float]] = [[0.0, 0.0]]
    for pair in ordered:  # rare pairs are counted together, until five are expected
        if cells[-1][1] >= 5:
            cells.append([0.0, 0.0])
        cells[-1] = [cells[-1][0] + counts[pair], cells[-1][1] + expected[pair] * draws]
    seen, wanted = zip(*cells, strict=True)
    return float(chisquare(seen, [w * draws / sum(wanted) for w in wanted]).pvalue)


def table_pvalue(name: str, config: GenerationConfig, draws: int) -> float:
    expected = exact_pairs(lambda text: TARGET[text[-2], text[-1]], config)
    return law_pvalue(Table(TARGET), DRAFTERS[name](), expected, config, draws)


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
@pytest.mark.parametrize(
    ("drafter", "fields"),
    [
        ("good", {"position": "rope"}),
        ("good", {"bigrams": 300}),
        ("small", {"position": "learned"}),
        ("lookup", {"position": "rope"}),
        ("lookup", {"position": "learned"}),
    ],
    ids=str,
)
def test_greedy_is_plain_generation_token_for_token_across_the_limit(drafter, fields, prompt) -> None:
    gpt = model(**fields)
    small = model(seed=9, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=11)
    made = {"good": ModelDrafter(near(gpt, 0.02), 4), "small": ModelDrafter(small, 3), "lookup": LookupDrafter(5)}
    config = GenerationConfig(max_new_tokens=60, temperature=0)
    passes = list(speculate(gpt, prompt, config, made[drafter]))
    assert flat(passes) == plain(gpt, prompt, config)
    print(f"{drafter}: {len(passes)} passes for 60 tokens")
    if drafter != "small":
        assert len(passes) < 60  # some guesses were accepted


def test_greedy_is_plain_generation_under_penalties_and_bans() -> None:
    gpt, rules = model(), Rules(eos_id=11, bias={3: 2.0, 5: -math.inf}, bad_words=((8, 9), (20,)))
    config = GenerationConfig(
        max_new_tokens=50, temperature=0, repetition_penalty=1.3, frequency_penalty=0.2, no_repeat_ngram_size=3,
        min_new_tokens=20,
    )  # fmt: skip
    for drafter in (ModelDrafter(near(gpt, 0.02), 4), LookupDrafter(3)):
        for prompt in PROMPTS[1:3]:
            assert flat(list(speculate(gpt, prompt, config, drafter, 11, rules=rules))) == plain(
                gpt, prompt, config, eos_id=11, rules=rules
            )


def test_greedy_is_plain_generation_for_models_made_ready_in_c() -> None:
    gpt = model()
    fast, guessing = (prepare_decoding(copy.deepcopy(m), "fp32") for m in (gpt, near(gpt, 0.02)))
    config = GenerationConfig(max_new_tokens=30, temperature=0)
    for drafter in (ModelDrafter(guessing, 4), LookupDrafter(4)):
        passes = list(speculate(fast, PROMPTS[2], config, drafter))
        assert flat(passes) == plain(gpt, PROMPTS[2], config)
        assert len(passes) < 30


@pytest.mark.parametrize(
    ("name", "config"),
    mostly_slow([("good", BOLD), ("bad", BOLD), ("bad", PENALTIES), ("lookup", BOLD), ("lookup", PENALTIES)], [2, 3]),
    ids=["good", "bad", "bad-penalties", "lookup", "lookup-penalties"],
)
def test_pairs_have_the_law_of_plain_sampling(name: str, config: GenerationConfig) -> None:
    pvalue = table_pvalue(name, config, 500)
    print(f"{name}: p = {pvalue:.3f}")
    assert pvalue > 0.001


def always(chances: Tensor, drafted: Tensor, guess: int, generator: torch.Generator) -> int:
    return guess


def from_all_that_is_left(chances: Tensor, drafted: Tensor, guess: int, generator: torch.Generator) -> int:
    """A wrong rule: replaces a guess by a draw from p, not p - q, so guessed tokens come too often."""
    if torch.rand((), generator=generator) * drafted[guess] < chances[guess]:
        return guess
    return int(draw(chances, generator))


def likelier_than_drafted(chances: Tensor, drafted: Tensor, guess: int, generator: torch.Generator) -> int:
    if drafted[guess] <= chances[guess]:
        return guess
    return int(draw((chances - drafted).clamp(min=0), generator))


@pytest.mark.parametrize("rule", [always, from_all_that_is_left, likelier_than_drafted])
def test_a_wrong_rule_fails_the_test_of_the_law(rule, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speculative, "judge", rule)
    try:
        pvalue = table_pvalue("bad", BOLD, 500)
    except AssertionError as error:  # the rule wrote a token that plain sampling never writes
        assert "never draws" in str(error)
        pvalue = 0.0
    print(f"{rule.__name__}: p = {pvalue:.1e}")
    assert pvalue < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("name", DRAFTERS)
def test_many_pairs_have_the_law_of_plain_sampling(name: str) -> None:
    for config in (BOLD, PENALTIES):
        assert table_pvalue(name, config, 8_000) > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("noise", [0.05, 1.0])
def test_real_models_have_the_law_of_plain_sampling(noise: float) -> None:
    gpt = model(vocab_size=V, embed_dim=8, num_heads=1, num_kv_heads=1, num_layers=1)
    expected = exact_pairs(lambda text: gpt(text[None])[0, -1].detach(), PENALTIES)
    assert law_pvalue(gpt, ModelDrafter(near(gpt, noise), 3), expected, PENALTIES, 3000) > 0.001


def test_a_draft_by_the_model_itself_is_accepted_with_its_free_token() -> None:
    gpt, config = model(max_seq_len=128), GenerationConfig(max_new_tokens=60, temperature=1.0, top_p=0.9)
    passes = list(speculate(gpt, [1, 2], config, ModelDrafter(gpt, 4)))
    assert [len(ids) for ids in passes] == [5] * 12


def test_better_drafts_and_repetition_need_fewer_passes(capsys: pytest.CaptureFixture[str]) -> None:
    gpt, config = model(max_seq_len=256), GenerationConfig(max_new_tokens=60, temperature=0.3)
    prompt = [1, 2, 3, 4] * 5
    drafters = {
        "good": ModelDrafter(near(gpt, 0.02), 4),
        "bad": ModelDrafter(model(seed=9, max_seq_len=256), 4),
        "none": LookupDrafter(0),
    }
    passes = {name: list(speculate(gpt, prompt, config, drafter)) for name, drafter in drafters.items()}
    greedy = config.model_copy(update={"temperature": 0.0})
    passes["look-up, greedy"] = list(speculate(gpt, prompt, greedy, LookupDrafter(4)))
    counts = {name: len(ids) for name, ids in passes.items()}
    with capsys.disabled():
        print("\npasses for 60 tokens:", ", ".join(f"{name} {count}" for name, count in counts.items()))
    assert all(len(flat(ids)) == 60 for ids in passes.values())
    assert counts["none"] == 60
    assert counts["good"] < counts["bad"] <= 60
    assert counts["look-up, greedy"] < 40


def test_one_pass_of_the_model_for_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    gpt, calls = model(max_seq_len=64), []
    hidden = gpt.hidden
    monkeypatch.setattr(gpt, "hidden", lambda *args: calls.append(args[0].shape[1]) or hidden(*args))
    passes = list(speculate(gpt, [1, 2, 3], GenerationConfig(max_new_tokens=40, temperature=0), LookupDrafter(4)))
    assert len(calls) == len(passes) < 40
    assert max(calls[1:]) <= 5  # each pass reads only the new token and the guesses


def test_eos_ends_the_text_and_a_draft_beyond_it() -> None:
    gpt, config = model(max_seq_len=64), GenerationConfig(max_new_tokens=40, temperature=1.0, seed=2)
    free = flat(list(speculate(gpt, [1], config, ModelDrafter(gpt, 4))))
    for place in (1, 2, 5):
        eos = free[place]
        ended = flat(list(speculate(gpt, [1], config, ModelDrafter(gpt, 4), eos)))
        assert ended[-1] == eos
        assert ended.count(eos) == 1
        assert ended == free[: free.index(eos) + 1]


def test_a_drafter_serves_several_texts_in_turn() -> None:
    gpt, config = model(max_seq_len=64), GenerationConfig(max_new_tokens=20, temperature=0.8)
    shared = ModelDrafter(near(gpt, 0.1), 3)
    alone = [list(speculate(gpt, p, config, ModelDrafter(shared.model, 3), seed=i)) for i, p in enumerate(PROMPTS)]
    together = [speculate(gpt, p, config, shared, seed=i) for i, p in enumerate(PROMPTS)]
    got = list(itertools.zip_longest(*together))
    assert [[ids for ids in column if ids] for column in zip(*got, strict=True)] == alone


def test_a_rejected_guess_may_write_nothing_but_the_text_goes_on() -> None:
    """Nothing may follow 5; the drafters guess it, but the model would never write it."""

    class Fives:
        vocab_size = None

        def draft(self, tokens, room: int, sampling: Sampling) -> Draft:
            return Draft([5] * room)

    def certain(token: int) -> Table:
        return Table(torch.zeros(V, V, V).index_fill(2, torch.tensor(token), 9.0))

    config, rules = BOLD.model_copy(update={"top_k": 1}), Rules(bad_words=tuple((5, after) for after in range(V)))
    for drafter in (Fives(), ModelDrafter(certain(5), 3)):  # pyright: ignore
        assert flat(list(speculate(certain(7), [1], config, drafter, rules=rules))) == [7, 7, 7]  # pyright: ignore
        with pytest.raises(GenerationError, match="no token is left"):
            list(speculate(certain(5), [1], config, drafter, rules=rules))  # pyright: ignore


@pytest.mark.parametrize(
    ("tokens", "guesses"),
    [
        ([1, 2, 3, 4, 5, 1, 2], [3, 4, 5, 1]),
        ([7, 8, 7, 8], [7, 8, 7, 8]),  # continues into its own guesses
        ([1, 2, 9, 3, 2, 5, 1, 2], [9, 3, 2, 5]),  # two matching tokens count more than a later single one
        ([2, 9, 4, 2, 5, 4, 2], [5, 4, 2, 5]),  # the later of two matches
        ([1, 2, 3, 6, 0, 1, 2, 3, 7, 0, 2, 3], [7, 0, 2, 3]),
        ([1, 2, 3], []),
        ([1], []),
    ],
)
def test_look_up_guesses_what_followed_before(tokens: list[int], guesses: list[int]) -> None:
    sampling = Sampling(1, BOLD, Rules(), torch.Generator())
    assert LookupDrafter(4).draft(tokens, 9, sampling).ids == guesses
    assert LookupDrafter(4).draft(tokens, 2, sampling).ids == guesses[:2]


def test_look_up_compares_three_tokens_at_most() -> None:
    tokens = [0, 1, 2, 3, 6, 1, 2, 3, 7, 0, 1, 2, 3]
    assert latest_occurrence(tokens) == 8
    assert latest_occurrence(tokens, 4) == 4


def test_common_beginning() -> None:
    assert [common([1, 2, 3], other) for other in ([1, 2, 3, 4], [1, 2], [1, 5, 3], [])] == [3, 2, 1, 0]


def test_draws_follow_weights_and_never_take_one_of_zero() -> None:
    weights, generator = torch.tensor([0.0, 3.0, 0.0, 1.0, 2.0, 0.0]), torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([draw(weights, generator) for _ in range(3000)]), minlength=6)
    assert counts[[0, 2, 5]].sum() == 0
    assert chisquare(counts[[1, 3, 4]], [1500, 500, 1000]).pvalue > 0.001


def test_mistakes_are_named() -> None:
    config = GenerationConfig(max_new_tokens=3)
    with pytest.raises(GenerationError, match="prompt is empty"):
        next(speculate(model(), [], config, LookupDrafter(2)))
    with pytest.raises(GenerationError, match="draft model has 8 ids, the model 70"):
        next(speculate(model(), [1], config, ModelDrafter(model(vocab_size=V), 2)))
