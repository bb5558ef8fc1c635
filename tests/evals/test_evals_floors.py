"""Test floors against slow, obvious references."""

import json
import lzma
import math
import random
import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from minigpt.config import DataConfig
from minigpt.data import prepare
from minigpt.data.stories import generator
from minigpt.errors import DataError
from minigpt.evals import NGram, TokenText, compute_floors, run_floors
from minigpt.evals.floors import holds, stories_floors, unigram_bits, xz_bits
from minigpt.tokenizers import BPETokenizer, ByteTokenizer, CharTokenizer, safe_cut

small_texts = st.binary(min_size=1, max_size=60) | st.text("abc ", min_size=1, max_size=60).map(str.encode)


def array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


class SlowKneserNey:
    """The formula written directly, in dictionaries of byte strings."""

    def __init__(self, data: bytes, order: int):
        padded = bytes(order - 1) + data
        self.order = order
        self.counts = {order: Counter(padded[i : i + order] for i in range(len(data)))}
        for n in range(order - 1, 0, -1):
            self.counts[n] = Counter(gram[1:] for gram in self.counts[n + 1])
        self.total, self.kinds = defaultdict(int), defaultdict(int)
        for n, counts in self.counts.items():
            for gram, count in counts.items():
                self.total[n, gram[:-1]] += count
                self.kinds[n, gram[:-1]] += 1

    def p(self, context: bytes, byte: int, n: int | None = None) -> float:
        n = self.order if n is None else n
        if n == 0:
            return 1 / 256
        history = context[len(context) - (n - 1) :]
        shorter = self.p(context, byte, n - 1)
        if not self.total[n, history]:
            return shorter
        count = self.counts[n][history + bytes([byte])]
        return (max(count - 0.75, 0) + 0.75 * self.kinds[n, history] * shorter) / self.total[n, history]

    def bits(self, data: bytes) -> float:
        padded = bytes(self.order - 1) + data
        return -sum(math.log2(self.p(padded[i : i + self.order - 1], byte)) for i, byte in enumerate(data))


@settings(max_examples=60)
@given(small_texts, small_texts, st.integers(1, 8))
def test_ngram_equals_the_formula_in_dictionaries(train, other, order):
    assert NGram.fit(array(train), order).bits(array(other)) == pytest.approx(SlowKneserNey(train, order).bits(other))


@settings(max_examples=40)
@given(small_texts, st.binary(min_size=4, max_size=4) | st.text("abc ", min_size=4, max_size=4).map(str.encode))
def test_probabilities_of_the_256_next_bytes_sum_to_one_after_any_context(train, context):
    keys = np.array([int.from_bytes(context + bytes([byte])) for byte in range(256)], np.uint64)
    p = NGram.fit(array(train)).probabilities(keys)
    assert p.sum() == pytest.approx(1, abs=1e-12) and p.min() > 0


def test_scoring_in_chunks_changes_nothing():
    data = array(random.Random(0).randbytes(100) * 3)
    model = NGram.fit(data[:200])
    whole = model.bits(data)
    assert model.bits(data, chunk=7) == pytest.approx(whole, rel=1e-12)


def test_ngram_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="order"):
        NGram.fit(array(b"abc"), 9)
    with pytest.raises(ValueError, match="one byte"):
        NGram.fit(array(b""))


@given(small_texts, small_texts)
def test_unigram_is_entropy_plus_divergence(train, other):
    p = np.bincount(array(other), minlength=256) / len(other)
    q = np.bincount(array(train), minlength=256) + 1.0
    expected = scipy.stats.entropy(p, base=2) + scipy.stats.entropy(p, q, base=2)
    assert unigram_bits(array(train), array(other)) / len(other) == pytest.approx(expected)


def test_counting_a_long_text_takes_memory_for_a_part_of_it():
    tokens, text = (np.broadcast_to(kind(3), 1 << 25) for kind in (np.uint16, np.uint8))
    tracemalloc.start()
    try:
        assert holds(tokens, 3) and not holds(tokens, 4)
        assert unigram_bits(array(b"\3"), text) == pytest.approx(len(text) * math.log2(257 / 2))
        assert tracemalloc.get_traced_memory()[1] < 45e6
    finally:
        tracemalloc.stop()


def test_xz_is_what_the_text_adds_to_the_archive():
    before, other = b"the cat sat on the mat. " * 50, random.Random(1).randbytes(5000)
    compressor = lzma.LZMACompressor()
    both = len(compressor.compress(before + other) + compressor.flush())
    assert xz_bits(array(before), array(other)) == 8 * (both - len(lzma.compress(before)))
    assert xz_bits(array(other), array(other)) < 0.05 * xz_bits(array(before), array(other))


def test_uniform_is_over_the_bytes_of_the_training_text():
    floors = compute_floors(array(b"abcd" * 9), array(b"abcd"), array(b"aaab"))
    assert floors["uniform"] == 2.0
    assert list(floors) == ["uniform", "unigram", "five_gram", "xz"]
    with pytest.raises(DataError, match="empty"):
        compute_floors(array(b"a"), array(b"a"), array(b""))


TOKENIZERS = [
    ByteTokenizer(),
    CharTokenizer.from_texts(["abcdé €"]),
    BPETokenizer.train(["the cat sat on the mat. " * 20], 280, "gpt4", 1 << 20),
]


@settings(max_examples=60)
@given(st.sampled_from(TOKENIZERS), st.data(), st.integers(1, 40))
def test_bytes_by_table_are_the_tokens_bytes_joined(tokenizer, data, limit):
    ids = np.array(data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=30)), np.uint16)
    expected = b"".join(b"?" if i == tokenizer.unk_id else tokenizer.token_bytes(int(i)) for i in ids)
    table = TokenText(tokenizer, chunk=4)
    assert table.whole(ids).tobytes() == expected
    assert table.head(ids, limit).tobytes() == expected[:limit]
    assert table.tail(ids, limit).tobytes() == expected[-limit:]
    assert table.lengths[ids].sum() == len(expected)


def test_a_spread_is_taken_from_all_parts_of_the_text() -> None:
    table, ids = TokenText(ByteTokenizer()), np.array(ByteTokenizer().encode("aaaabbbbcccc"), np.uint16)
    assert table.spread(ids, 6, parts=3).tobytes() == b"aabbcc"
    assert table.spread(ids, 100, parts=3).tobytes() == b"aaaabbbbcccc"
    assert table.spread(ids[:0], 100).tobytes() == b""


@pytest.fixture
def prepared(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("the cat sat on the mat. " * 100, encoding="utf-8")
    return prepare(DataConfig(source=str(path)), ByteTokenizer(), safe_cut, out=tmp_path / "prepared")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The files of the floors' cache."""
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    return lambda: sorted((tmp_path / "cache" / "floors").glob("*"))


def test_floors_of_a_run_are_those_of_its_text_and_are_kept_by_its_hash(prepared, kept):
    parts = {name: array(file.tokens.astype(np.uint8).tobytes()) for name, file in prepared.splits.items()}
    expected = compute_floors(parts["train"], parts["train"], parts["val"])
    assert run_floors(prepared, ByteTokenizer(), "val") == pytest.approx(expected)
    (file,) = kept()
    file.write_text(json.dumps({"uniform": 5.0}))
    assert run_floors(prepared, ByteTokenizer(), "val") == {"uniform": 5.0}
    for form in ('{"unif', "[]", "3", '{"KEY": 3}', '{"xz": "x"}', "[" * 100_000):
        file.write_text(form)
        assert run_floors(prepared, ByteTokenizer(), "val") == pytest.approx(expected)
    assert json.loads(file.read_text()) == pytest.approx(expected)


def test_the_same_text_elsewhere_has_the_kept_floors(prepared, kept, tmp_path):
    text = "the cat sat on the mat. " * 100

    def floors(text: str, tokenizer) -> dict[str, float]:
        path = tmp_path / f"copy-{len(list(tmp_path.iterdir()))}.txt"
        path.write_text(text, encoding="utf-8")
        made = prepare(DataConfig(source=str(path)), tokenizer, safe_cut, out=path.with_suffix(""))
        return run_floors(made, tokenizer, "val")

    expected = run_floors(prepared, ByteTokenizer(), "val")
    assert floors(text, ByteTokenizer()) == floors(text, TOKENIZERS[2]) == expected and len(kept()) == 1
    floors(text.replace("mat", "hat"), ByteTokenizer())
    assert len(kept()) == 2
    assert floors(text, CharTokenizer.from_texts(["the cat"])) != expected  # this tokenizer does not know all letters
    assert len(kept()) == 3


def test_floors_do_not_need_a_cache_that_can_be_written(prepared, kept):
    expected = run_floors(prepared, ByteTokenizer(), "val")
    (file,) = kept()
    file.unlink()
    file.mkdir()
    assert run_floors(prepared, ByteTokenizer(), "val") == expected


def test_the_training_split_has_no_fitted_floors(prepared):
    assert run_floors(prepared, ByteTokenizer(), "train") == {}


def test_stories_have_the_grammars_entropy_and_their_own_surprisal():
    config = DataConfig(source="stories", stories_count=300)
    told = prepare(config, ByteTokenizer(), safe_cut)
    floors = run_floors(told, ByteTokenizer(), "val")
    ids = told.splits["val"].tokens
    written = [
        ByteTokenizer().decode(part) for part in np.split(ids, np.flatnonzero(ids == ByteTokenizer().eos_id) + 1)
    ]
    nats = -sum(generator.log_probability(story) for story in written if story)
    assert floors["entropy"] == generator.entropy().bits_per_byte
    assert floors["surprisal"] == pytest.approx(nats / math.log(2) / told.meta["splits"]["val"]["bytes"])
    assert floors["surprisal"] == pytest.approx(floors["entropy"], rel=0.1)
    assert set(run_floors(told, ByteTokenizer(), "train")) == {"entropy", "surprisal"}


def test_stories_that_lost_a_character_have_no_surprisal():
    assert set(stories_floors(array(b"Once upon a t?me there was.\n"))) == {"entropy"}


def test_floors_of_tiny_shakespeare_are_the_recorded_ones(mirror):
    data = array((mirror / "tinyshakespeare" / "input.txt").read_bytes())
    cut = len(data) * 9 // 10
    floors = compute_floors(data[:cut], data[:cut], data[cut:])
    assert floors["five_gram"] == pytest.approx(2.260, abs=5e-4)
    assert floors["unigram"] == pytest.approx(4.8295, abs=5e-4)
    assert floors["xz"] == pytest.approx(2.516, abs=0.02)  # versions of liblzma differ a little
