"""Test the trainer against its textbook reference and Hugging Face's, the encoder against tiktoken and Hugging Face."""

import json
import signal
import time
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from random import Random
from string import ascii_letters, digits

import numpy as np
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from mostly_slow import mostly_slow
from test_tokenizers import ADVERSARIAL, TEXT, unicode_text
from tokenizers import Regex, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Theirs

from minigpt.errors import TokenizerError
from minigpt.tokenizers import BPETokenizer, CharTokenizer, learn, load
from minigpt.tokenizers.bpe import SPECIALS
from minigpt.tokenizers.joining import join
from minigpt.tokenizers.learn import count_words, learn_merges, learn_merges_reference
from minigpt.tokenizers.patterns import PATTERNS, PUBLISHED

LETTERS = {"dna": "ACGT", "base64": ascii_letters + digits + "+/", "one letter": "a"}
few_letters = st.dictionaries(st.text("ab é", min_size=1, max_size=8), st.integers(1, 4), max_size=8)


def train_theirs(texts: Iterable[str], vocab_size: int, pattern: str, min_frequency: int = 2) -> Theirs:
    """Hugging Face's trainer with the same pattern, alphabet and special tokens."""
    theirs = Theirs(models.BPE())
    theirs.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PUBLISHED.get(pattern, pattern)), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=min_frequency,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    theirs.train_from_iterator(texts, trainer)
    return theirs


def model_of(theirs: Theirs) -> tuple[list[str], dict[str, int]]:
    model = json.loads(theirs.to_str())["model"]
    return [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]], model["vocab"]


def assert_same_model(ours: BPETokenizer, theirs: Theirs) -> None:
    merges, vocab = model_of(theirs)
    model = ours.to_tree()["model"]
    assert model["merges"] == merges
    assert model["vocab"] == vocab


@settings(max_examples=300)
@given(words=few_letters, num_merges=st.integers(0, 30), min_count=st.integers(1, 3))
def test_the_trainer_learns_what_the_textbook_loop_learns(
    words: dict[str, int], num_merges: int, min_count: int
) -> None:
    merges = learn_merges(words, num_merges, min_count)
    assert merges == learn_merges_reference(words, num_merges, min_count)
    assert len(merges) <= num_merges


runs = st.tuples(st.sampled_from(["a", "b", "ab", "aab", "é"]), st.integers(1, 40)).map(lambda run: run[0] * run[1])


@settings(max_examples=200)
@given(
    words=st.dictionaries(st.lists(runs, min_size=1, max_size=6).map("".join), st.integers(1, 3), max_size=4),
    num_merges=st.integers(0, 60),
    min_count=st.integers(1, 3),
)
def test_runs_and_overlaps_in_long_words_teach_what_the_textbook_says(
    words: dict[str, int], num_merges: int, min_count: int
) -> None:
    assert learn_merges(words, num_merges, min_count) == learn_merges_reference(words, num_merges, min_count)


@pytest.mark.parametrize("letters", LETTERS.values(), ids=LETTERS)
def test_one_long_word_gives_the_merges_and_ids_of_hugging_face(letters: str) -> None:
    text = "".join(Random(1).choices(letters, k=5000))
    everything = r"[\s\S]+"
    ours = BPETokenizer.train([text], 400, everything, min_count=1)
    theirs = train_theirs([text], 400, everything, min_frequency=1)
    assert_same_model(ours, theirs)
    other = "".join(Random(2).choices(letters, k=4999))
    assert ours.encode(other) == theirs.encode(other).ids


@pytest.mark.parametrize("letters", mostly_slow(LETTERS.values()), ids=LETTERS)
def test_a_word_of_300000_letters_takes_seconds_and_tells_progress(letters: str) -> None:
    told: list[tuple[str, int, int | None]] = []
    text = "".join(Random(1).choices(letters, k=300_000))
    start = time.process_time()
    ours = BPETokenizer.train([text], 1000, "[^ ]+", progress=lambda *what: told.append(what))
    ids = ours.encode_array(text)
    assert time.process_time() - start < 10  # 1 s; minutes if a merge read the whole word
    assert ours.decode(ids.tolist()) == text
    merges = len(ours.merges)
    assert told == [("counting words", 300_000, None), *(("learning byte pairs", k + 1, 740) for k in range(merges))]


def test_learning_ends_at_an_interrupt_that_comes_at_a_merge() -> None:
    def press(what: str, done: int, total: int | None) -> None:
        if done == 3:
            signal.raise_signal(signal.SIGINT)  # Ctrl-C

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
    try:
        with pytest.raises(KeyboardInterrupt):
            learn_merges({"abcabcabc": 3}, 10, progress=press)
    finally:
        signal.signal(signal.SIGINT, before)


@settings(max_examples=60)
@given(text=st.text("aabc é\n'.1", min_size=1, max_size=120), pattern=st.sampled_from(sorted(PATTERNS)))
def test_the_trainer_learns_what_hugging_face_learns(text: str, pattern: str) -> None:
    assert_same_model(BPETokenizer.train([text], 300, pattern), train_theirs([text], 300, pattern))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_and_ids_equal_hugging_face_on_adversarial_text(pattern: str) -> None:
    ours = BPETokenizer.train([TEXT], 1000, pattern, min_count=1)
    theirs = train_theirs([TEXT], 1000, pattern, min_frequency=1)
    assert_same_model(ours, theirs)
    for text in ADVERSARIAL:
        if "<|" not in text:
            assert ours.encode(text) == theirs.encode(text).ids


@settings(max_examples=200)
@given(text=unicode_text, pattern=st.sampled_from(sorted(PATTERNS)), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_words_are_counted_alike_however_the_stream_is_cut(text: str, pattern: str, cuts: list[int]) -> None:
    text += " and the rest.\nOf it  all"
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    chunks = [text[start:end] for start, end in pairwise(edges)]
    whole = count_words([text], pattern)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learn, "BLOCK", 4)
        assert count_words(iter(chunks), pattern) == whole
    assert sorted("".join(whole.elements())) == sorted(text)


def test_no_more_text_than_two_blocks_is_held_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learn, "BLOCK", 1000)
    sizes = [len(block) for block in learn._blocks("word " * 20 for _ in range(500))]
    assert sum(sizes) == 50_000
    assert max(sizes) < 2000


def test_text_without_a_safe_cut_is_not_searched_again_at_each_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def none(text: str) -> int:
        searched.append(len(text))
        return 0

    monkeypatch.setattr(learn, "BLOCK", 10)
    monkeypatch.setattr(learn, "safe_cut", none)
    assert count_words(["x"] * 5000, "gpt4") == Counter(["x" * 5000])
    assert sum(searched) < 4 * 5000


@settings(max_examples=200)
@given(text=unicode_text, pattern=st.sampled_from(sorted(PATTERNS)))
def test_the_fast_encoder_gives_the_ids_of_the_textbook_encoder(text: str, pattern: str) -> None:
    ours = TRAINED[pattern]
    assert ours.encode(text) == ours.encode_reference(text)


TRAINED = {pattern: BPETokenizer.train([TEXT], 600, pattern, min_count=1) for pattern in PATTERNS}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_token_is_the_encoding_of_its_own_bytes(pattern: str) -> None:
    # Shows that tiktoken's rule (lowest id of the joined bytes) equals the textbook's (first learned pair).
    ours = TRAINED[pattern]
    for id_ in range(len(SPECIALS), ours.vocab_size):
        assert ours.merge_word(ours.token_bytes(id_)) == [id_]


def test_the_textbook_encoder_merges_in_the_order_learned() -> None:
    pieces = [bytes([byte]) for byte in range(256)] + [b"bc", b"ab", b"abc"]
    tokenizer = BPETokenizer(pieces, [(98, 99), (97, 98), (97, 256)], "gpt2", {})
    assert tokenizer.merge_word(b"abc") == [258]
    assert tokenizer.merge_word(b"ab") == [257]
    assert tokenizer.merge_word(b"abbcc") == [257, 256, 99]
    with pytest.raises(TokenizerError, match="order of their ids"):
        BPETokenizer(pieces, [(97, 98), (98, 99), (97, 256)], "gpt2", {})


@pytest.mark.parametrize(
    "pattern", [*PATTERNS, r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"], ids=[*PATTERNS, "own"]
)
def test_a_file_trained_by_hugging_face_gives_identical_ids(pattern: str, tmp_path: Path) -> None:
    theirs = train_theirs([TEXT], 500, pattern)
    theirs.add_special_tokens(["<|im_start|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load(tmp_path)
    assert isinstance(ours, BPETokenizer)
    assert ours.pattern == pattern
    assert ours.special_tokens["<|im_start|>"] == ours.vocab_size - 1
    for text in [*ADVERSARIAL, "<|im_start|>hi"]:
        assert ours.encode(text, special=True) == theirs.encode(text).ids
    ours.save(tmp_path / "again")
    assert load(tmp_path / "again").fingerprint == ours.fingerprint


def _agree_on(text: str, train_text: str, vocab_size: int, pattern: str) -> None:
    """Merges equal Hugging Face's; ids equal theirs, plain tiktoken's and the textbook encoder's on all of `text`."""
    ours = BPETokenizer.train(
        [train_text[start : start + 100_003] for start in range(0, len(train_text), 100_003)], vocab_size, pattern
    )
    theirs = train_theirs([train_text], vocab_size, pattern)
    assert_same_model(ours, theirs)
    assert ours.vocab_size == vocab_size
    ids = ours.encode_array(text)
    assert ids.tolist() == theirs.encode(text).ids
    shift, vocab = len(SPECIALS), model_of(theirs)[1]
    spelling = {char: byte for byte, char in enumerate(_gpt2_spelling())}
    ranks = {bytes(spelling[char] for char in word): id_ for word, id_ in vocab.items() if id_ >= shift}
    plain = tiktoken.Encoding("plain", pat_str=PUBLISHED[pattern], mergeable_ranks=ranks, special_tokens={})
    assert np.array_equal(plain.encode_to_numpy(text, disallowed_special=()), ids)
    known: dict[str, list[int]] = {}
    reference: list[int] = []
    for word in learn.regex.findall(PATTERNS[pattern], text):
        if word not in known:
            known[word] = ours.merge_word(word.encode())
        reference += known[word]
    assert reference == ids.tolist()


def _gpt2_spelling() -> list[str]:
    """OpenAI's bytes_to_unicode, in transformers' words."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    table = bytes_to_unicode()
    return [table[byte] for byte in range(256)]


@pytest.mark.parametrize("pattern", mostly_slow(PATTERNS, [1]))
def test_merges_and_ids_equal_theirs_on_wikitext_validation(mirror: Path, pattern: str) -> None:
    text = (mirror / "wikitext-2" / "valid.txt").read_text(encoding="utf-8")[:400_000]
    _agree_on(text, text, 1024, pattern)


@pytest.mark.slow
@pytest.mark.parametrize("pattern", PATTERNS)
def test_merges_and_ids_equal_theirs_on_the_whole_of_wikitext_train(mirror: Path, pattern: str) -> None:
    text = (mirror / "wikitext-2" / "train.txt").read_text(encoding="utf-8")
    _agree_on(text, text, 8192, pattern)


@pytest.mark.parametrize(
    ("specials", "message"),
    [
        ({"<x>": -1}, "'<x>' has the id -1, outside"),
        ({"<x>": 261}, "'<x>' has the id 261, outside"),
        ({"<x>": 260, "<y>": 260}, "'<x>' shares its id 260"),
        ({"<x>": 97}, "'<x>' shares its id 97"),
    ],
)
def test_a_special_token_has_an_id_of_its_own(specials: dict[str, int], message: str) -> None:
    pieces = [*(bytes([byte]) for byte in range(256)), b"ab", b"abc", b"abcd", b"", b""]
    with pytest.raises(TokenizerError, match=message):
        BPETokenizer(pieces, [(97, 98), (256, 99), (257, 100)], "gpt2", specials)


def test_a_char_tokenizer_is_made_of_single_characters() -> None:
    with pytest.raises(TokenizerError, match="'no' is not one character"):
        CharTokenizer(["a", "no"])


def test_a_file_of_long_merges_is_checked_at_once(tmp_path: Path) -> None:
    """Each merge lengthens one token. Merging again and again over the whole token would take minutes for 500 kB."""
    pieces, merges = [bytes([byte]) for byte in range(256)], []
    for number in range(600):
        merges.append((len(pieces) - 1 if merges else 97, 98 + number % 20))
        pieces.append(pieces[merges[-1][0]] + pieces[merges[-1][1]])
    BPETokenizer(pieces, merges, "gpt2", {}).save(tmp_path)
    start = time.process_time()
    assert load(tmp_path).vocab_size == len(pieces)
    assert time.process_time() - start < 5


def test_joining_by_a_heap_gives_the_textbook_ids() -> None:
    random = Random(0)
    words = ["the ", "cat", "aaa", "mat", "ab", "x"]
    tokenizer = BPETokenizer.train(["".join(random.choices(words, k=3000))], 500)
    for _ in range(300):
        word = "".join(random.choices(words, k=random.randrange(1, 9))).encode()
        ids = [tokenizer._ids[bytes([byte])] for byte in word]
        assert join(ids, tokenizer._joined) == tokenizer.merge_word(word), word
