"""Test generation from text to text: stop texts, ragged batches, seeds, scores, what ends a text."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow

from minigpt.config import GenerationConfig, ModelConfig, TokenizerConfig
from minigpt.errors import ConfigError, GenerationError
from minigpt.generation.text import Writing, complete, generate_text, stream_text
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.generation.text.stops import Stops
from minigpt.model import GPT
from minigpt.tokenizers import EOS, ByteTokenizer, build
from minigpt.tokenizers.sentencepiece import SentencePieceTokenizer

LETTERS = build(TokenizerConfig(kind="char"), ["abcdefghijklmnopqrstuvwxyz .,\n"])


def model(tokenizer=LETTERS, seed: int = 4, **fields) -> GPT:
    """Weights large enough that the distribution is far from flat."""
    shape = ModelConfig(embed_dim=32, num_heads=4, num_kv_heads=2, num_layers=2, max_seq_len=24, init_std=0.3)
    return GPT(shape.model_copy(update={"vocab_size": tokenizer.vocab_size, **fields}), seed=seed).eval()


def texts(gpt: GPT, prompts: list[str], tokenizer=LETTERS, **fields) -> list[list[str]]:
    return [[one.text for one in of] for of in complete(gpt, prompts, tokenizer, **fields)]


PROMPTS = ["abcdefghijklmnopqrstuvw"[: 1 + (7 * i) % 23] for i in range(16)]


@pytest.mark.parametrize(
    ("position", "temperature"), mostly_slow(itertools.product(["rope", "learned", "sinusoidal"], [0.0, 0.9]), [0, 3])
)
def test_sixteen_ragged_prompts_give_what_each_gives_alone(position, temperature, capsys) -> None:
    gpt = model(position=position)
    fields = {"max_new_tokens": 40, "temperature": temperature, "top_k": 10, "repetition_penalty": 1.1}
    seeds = list(range(50, 66))
    together = complete(gpt, PROMPTS, LETTERS, seeds, **fields)
    alone = [complete(gpt, [prompt], LETTERS, [seed], **fields)[0] for prompt, seed in zip(PROMPTS, seeds, strict=True)]
    assert together == alone
    assert len({of[0].text for of in together}) > 8
    with capsys.disabled():
        print(f"\n16 prompts of {min(map(len, PROMPTS))} to {max(map(len, PROMPTS))} tokens, {position}: equal")


@given(st.text("ab.", max_size=30), st.lists(st.text("ab.", min_size=1, max_size=4), max_size=3), st.data())
@settings(max_examples=300)
def test_stops_cut_the_same_place_however_the_text_is_split(text: str, stop: list[str], data) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    stops = Stops(GenerationConfig(stop=tuple(stop)))
    shown, pushed = "", ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        shown, pushed = shown + stops.push(text[start:end]), text[:end]
        if stops.hit:
            break
        assert pushed.startswith(shown)
        assert len(pushed) - len(shown) < max(map(len, stop), default=1)  # only a possible beginning of a stop text
    shown += stops.flush()
    places = [pushed.find(word) for word in stop if word in pushed]
    assert stops.hit == bool(places)
    assert shown == (pushed[: min(places)] if places else text)


def test_a_stop_expression_matches_across_pieces() -> None:
    stops = Stops(GenerationConfig(stop_regex=r"\d{3,}-", stop=("END",)))
    assert [stops.push(piece) for piece in ["a1", "23", "x12", "34", "-b"]] == ["a", "", "123x", "", ""]
    assert stops.hit
    assert stops.push("more") == stops.flush() == ""


@pytest.mark.parametrize(
    ("expression", "pieces", "shown"),
    [
        (r"\bend\b", ["fri", "end", "ly"], "friendly"),
        (r"^A", ["b", "A"], "bA"),
        (r"(?m)^Q:", ["x", "Q:\n", "Q:"], "xQ:\n"),
        (r"(?<=\n)Q:", ["x\n", "Q:"], "x\n"),
        ("(?x)e n d  # a comment", ["the e", "nd"], "the "),
    ],
)
def test_a_stop_expression_sees_the_text_before_it(expression: str, pieces: list[str], shown: str) -> None:
    for parts in (pieces, ["".join(pieces)]):
        stops = Stops(GenerationConfig(stop_regex=expression))
        assert "".join([*(stops.push(part) for part in parts), stops.flush()]) == shown


@pytest.mark.parametrize("expression", ["(", "a*"])
def test_an_unusable_expression_is_one_clear_error(expression: str) -> None:
    with pytest.raises(ConfigError, match=r"generation\.stop_regex: ") as caught:
        complete(model(), ["a"], LETTERS, stop_regex=expression)
    assert len(caught.value.problems) == 1


def test_a_text_ends_before_its_stop_which_is_never_streamed() -> None:
    gpt = model()
    plain = generate_text(gpt, "abc", LETTERS, max_new_tokens=60, seed=2, temperature=1.5, stop_at_eos=False)
    assert isinstance(plain, str)
    stop = plain[20:23]
    config = GenerationConfig(max_new_tokens=60, seed=2, temperature=1.5, stop_at_eos=False, stop=(stop,))
    writing = Writing(gpt, LETTERS, ["abc"], config)
    pieces = [piece for (piece,) in writing]
    assert "".join(pieces) == plain[: plain.index(stop)] == writing.completions[0][0].text
    assert writing.completions[0][0].reason == "stop"
    assert 3 <= writing.completions[0][0].tokens <= 30


def test_a_row_that_stopped_leaves_the_others_alone() -> None:
    gpt = model()
    plain = texts(gpt, ["abc"], num_samples=4, max_new_tokens=50)[0]
    stop = plain[1][5:8]
    stopped = texts(gpt, ["abc"], num_samples=4, max_new_tokens=50, stop=stop)[0]
    assert stopped == [text[: text.index(stop)] if stop in text else text for text in plain]
    assert stopped[1] != plain[1]


def test_log_probabilities_and_alternatives_are_those_of_the_model() -> None:
    gpt = model()
    found = complete(gpt, ["abc"], LETTERS, max_new_tokens=12, logprobs=3, temperature=1.5)[0][0]
    ids = LETTERS.encode("abc" + found.text)
    with torch.inference_mode():
        scores = gpt(torch.tensor([ids]))[0].log_softmax(-1)
    assert found.tokens == len(found.logprobs) == 12
    for place, token in enumerate(found.logprobs, 2):
        assert token.logprob == pytest.approx(scores[place, ids[place + 1]].item(), abs=1e-4)
        best = scores[place].topk(3)
        assert [value for _, value in token.top] == pytest.approx(best.values.tolist(), abs=1e-4)
        assert [text for text, _ in token.top] == [
            LETTERS.decode([i], skip_special=False) for i in best.indices.tolist()
        ]
    assert "".join(token.text for token in found.logprobs) == found.text


def test_best_of_keeps_the_most_likely_of_its_draws() -> None:
    gpt = model()
    draws = complete(gpt, ["abc"], LETTERS, num_samples=6, logprobs=0, max_new_tokens=15)[0]
    means = [sum(token.logprob for token in draw.logprobs) / draw.tokens for draw in draws]
    best = complete(gpt, ["abc"], LETTERS, best_of=6, max_new_tokens=15)[0]
    assert [one.text for one in best] == [draws[means.index(max(means))].text]
    assert best[0].score == pytest.approx(max(means), abs=1e-5)
    pairs = complete(gpt, ["abc"], LETTERS, best_of=3, num_samples=2, max_new_tokens=15)[0]
    assert [one.text for one in pairs] == [draws[means.index(max(part))].text for part in (means[:3], means[3:])]


def test_time_ends_a_text() -> None:
    found = complete(model(), ["abc"], LETTERS, max_new_tokens=10**5, max_seconds=0.05, stop_at_eos=False)[0][0]
    assert found.reason == "time" and found.tokens < 10**5
    config = GenerationConfig(max_new_tokens=10**5, stop_at_eos=False, max_seconds=1000)
    writing = Writing(model(), LETTERS, ["abc"], config)
    for _ in writing:
        if writing.rows[0].completion.tokens == 3:
            writing.deadline = 0.0
    assert [(of[0].reason, of[0].tokens) for of in writing.completions] == [("time", 3)]


def test_a_text_that_was_long_enough_did_not_end_by_time() -> None:
    config = GenerationConfig(prompt_lookup=2, max_new_tokens=5, stop_at_eos=False, max_seconds=1000)
    writing = Writing(model(), LETTERS, ["abc", "a"], config)
    for _ in writing:  # one text after another; no time is left when the first is complete
        if writing.rows[0].completion.tokens == 5:
            writing.deadline = 0.0
    assert [(of[0].reason, of[0].tokens) for of in writing.completions] == [("length", 5), ("time", 0)]


def test_streaming_never_shows_half_a_character() -> None:
    tokenizer = ByteTokenizer()
    gpt = model(tokenizer)
    with torch.no_grad():  # make bytes of two-byte characters likely
        gpt.head.weight[0xC3] *= 3
    pieces = [piece for (piece,) in stream_text(gpt, tokenizer, "é", GenerationConfig(max_new_tokens=80, seed=1))]
    whole = generate_text(gpt, "é", tokenizer, max_new_tokens=80, seed=1)
    assert "".join(pieces) == whole
    assert all(piece.encode().decode() == piece for piece in pieces)


def test_words_and_biases_are_spelled_by_the_tokenizer() -> None:
    gpt = model()
    plain = generate_text(gpt, "abc", LETTERS, max_new_tokens=60, temperature=0.0)
    assert isinstance(plain, str)
    pair = plain[4:6]
    assert pair not in str(generate_text(gpt, "abc", LETTERS, max_new_tokens=60, temperature=0.0, bad_words=[pair]))
    assert generate_text(gpt, "abc", LETTERS, max_new_tokens=5, logit_bias={"z": 1e4}) == "zzzzz"
    z = LETTERS.encode("z")[0]
    assert generate_text(gpt, "abc", LETTERS, max_new_tokens=5, logit_bias={f"#{z}": 1e4}) == "zzzzz"
    with pytest.raises(GenerationError, match="'zz' is 2 tokens"):
        generate_text(gpt, "abc", LETTERS, logit_bias={"zz": 1.0})
    with pytest.raises(GenerationError, match="#999 is not an id"):
        generate_text(gpt, "abc", LETTERS, logit_bias={"#999": 1.0})


def test_words_and_biases_begin_with_no_space_in_llamas_tokenizer() -> None:
    pieces = ["", *(f"<0x{byte:02X}>" for byte in range(256)), " ", "a", "b", " a"]
    tokenizer = SentencePieceTokenizer(pieces, {" a": 0.0}, {EOS: 0})
    rules = make_rules(GenerationConfig(bad_words=["a"], logit_bias={"b": 1.0, " a": 2.0, EOS: 3.0}), tokenizer)
    assert rules.bad_words == ((258,), (260,))
    assert rules.bias == {259: 1.0, 260: 2.0, 0: 3.0}


def test_a_huge_number_of_new_tokens_takes_no_memory() -> None:
    [found] = complete(model(), ["abc"], LETTERS, max_new_tokens=2**24, stop=["a", "e", " "])[0]
    assert found.reason in ("stop", "eos")


def test_the_memory_of_every_candidate_of_every_sample_is_counted() -> None:
    config = GenerationConfig(num_samples=1000, penalty_alpha=0.5, top_k=64)
    with pytest.raises(GenerationError, match="64,000 texts at once would take"):
        Writing(model(max_seq_len=1 << 18), LETTERS, ["a"], config)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"top_p": 0}, "generation.top_p: input should be greater than 0"),
        ({"min_p": 1.5}, "generation.min_p: input should be less than or equal to 1"),
        ({"max_new_tokens": 10**11}, "generation.max_new_tokens: input should be less than or equal to 16777216"),
        ({"repetition_penalty": 0}, "generation.repetition_penalty: input should be greater than 0"),
        ({"temperature": float("nan")}, "generation.temperature: input should be"),
        ({"stop": [""]}, "generation.stop: an empty text"),
        ({"num_beams": 4, "num_beam_groups": 3}, "generation: num_beams 4 is not a multiple"),
        ({"num_beams": 2, "num_samples": 3}, "generation: num_samples 3 is more than num_beams 2"),
        ({"num_beams": 2, "best_of": 2}, "generation: num_beams and best_of exclude each other"),
        ({"penalty_alpha": 0.6}, "generation: penalty_alpha chooses among top_k tokens"),
        ({"temprature": 1}, "generation.temprature: no such setting; did you mean temperature"),
    ],
    ids=str,
)
def test_each_setting_out_of_range_is_one_clear_error(fields, message) -> None:
    with pytest.raises(ConfigError) as caught:
        complete(model(), ["a"], LETTERS, **fields)
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


def test_every_search_is_reached_from_text(capsys) -> None:
    gpt = model()
    greedy = texts(gpt, ["abc", "hello"], temperature=0.0, max_new_tokens=30)
    assert texts(gpt, ["abc", "hello"], temperature=0.0, max_new_tokens=30, prompt_lookup=3) == greedy
    small = model(seed=5, num_layers=1)
    drafted = complete(gpt, ["abc", "hello"], LETTERS, draft=small, temperature=0.0, max_new_tokens=30)
    assert [[one.text for one in of] for of in drafted] == greedy
    beams = complete(gpt, ["abc", "hello"], LETTERS, temperature=0.0, num_beams=4, num_samples=3, max_new_tokens=12)
    assert [len(of) for of in beams] == [3, 3]
    assert all(of[0].score >= of[1].score >= of[2].score for of in beams)  # pyright: ignore
    alone = complete(gpt, ["abc"], LETTERS, temperature=0.0, num_beams=4, num_samples=3, max_new_tokens=12)[0]
    assert [one.text for one in beams[0]] == [one.text for one in alone]
    contrastive = texts(gpt, ["abc", "hello"], penalty_alpha=0.6, top_k=4, max_new_tokens=30)
    assert contrastive != greedy
    with pytest.raises(GenerationError, match="a draft works with sampling only"):
        complete(gpt, ["a"], LETTERS, draft=small, num_beams=2)
    with pytest.raises(GenerationError, match="logprobs are not reported with a draft"):
        complete(gpt, ["a"], LETTERS, draft=small, logprobs=1)
    with pytest.raises(ConfigError, match="logprobs are not reported with num_beams"):
        complete(gpt, ["a"], LETTERS, num_beams=2, logprobs=1)


def test_a_beam_that_ended_says_so_and_a_stop_cuts_it() -> None:
    gpt = model()
    with torch.no_grad():
        gpt.head.weight[LETTERS.eos_id] *= 2
    fields = {"temperature": 0.0, "num_beams": 3, "num_samples": 3, "max_new_tokens": 20}
    beams = complete(gpt, ["abc"], LETTERS, **fields)[0]
    assert {one.reason for one in beams} == {"eos"} or len({one.reason for one in beams}) == 2
    longest = max(beams, key=lambda one: len(one.text))
    stop = longest.text[-2:]
    assert len(stop) == 2
    cut = complete(gpt, ["abc"], LETTERS, stop=stop, **fields)[0]
    assert all(stop not in one.text for one in cut)
    assert "stop" in {one.reason for one in cut}


def test_a_ban_does_not_reach_a_row_that_has_ended() -> None:
    late = {"<|endoftext|>": -1e4}  # each row writes every token once, the end of text last: 29 and 31 of the 32
    found = complete(model(), ["abc", "a"], LETTERS, no_repeat_ngram_size=1, max_new_tokens=40, logit_bias=late)
    assert [of[0].reason for of in found] == ["eos", "eos"]
    assert [of[0].tokens for of in found] == [LETTERS.vocab_size - 3, LETTERS.vocab_size - 1]


def test_a_beam_that_ends_at_once_is_an_empty_text_not_none_at_all() -> None:
    now = {"<|endoftext|>": 1e4}
    found = complete(model(), ["abc"], LETTERS, temperature=0.0, num_beams=2, logit_bias=now)[0]
    assert [(one.text, one.reason, one.tokens) for one in found] == [("", "eos", 1)]
    assert generate_text(model(), "abc", LETTERS, temperature=0.0, num_beams=2, logit_bias=now) == ""


@pytest.mark.parametrize("search", [{}, {"num_beams": 3}, {"prompt_lookup": 3}, {"penalty_alpha": 0.6}], ids=str)
def test_a_prompt_longer_than_the_context_is_read_by_its_last_part(search) -> None:
    """Test every search, next to a shorter prompt, and with ids: the result is that of the last part, with one
    warning.
    """
    gpt = model()
    limit = gpt.config.max_seq_len
    long = ("hello abc the cat sat " * limit)[: limit + 5]
    settings = {"temperature": 0.0, "max_new_tokens": 20, "top_k": 4, **search}
    expected = texts(gpt, [long[-limit:], "abc"], **settings)
    cut = f"{limit + 5} tokens; only the last {limit} fit into the model's context$"
    with pytest.warns(UserWarning, match=f"1 of 2 prompts have up to {cut}") as told:
        assert texts(gpt, [long, "abc"], **settings) == expected
    assert len(told) == 1
    with pytest.warns(UserWarning, match=f"^the prompt has {cut}"):
        assert complete(gpt, [LETTERS.encode(long)], LETTERS, **settings)[0][0].text == expected[0][0]
