"""Test the tokenizer of whole words: splits, ids, its file, and the published figures of WikiText-2."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs

from minigpt import tokenizers
from minigpt.config import DataConfig, GenerationConfig, TokenizerConfig, load_config
from minigpt.data import prepare
from minigpt.data.statistics import TextStatistics
from minigpt.errors import TokenizerError
from minigpt.generation.text.generate import Row
from minigpt.tokenizers import WordTokenizer, load
from minigpt.tokenizers.cutter import Cutter
from minigpt.tokenizers.words import LINE_END, SPACES, UNKNOWN, WIKITEXT_2

TEXT = " \n = The cat = \n \n The cat sat on the mat , and the <unk> cat ran . \n"
WORDS = WordTokenizer.from_texts([TEXT])
SPACED = [
    "the  cat", "\tthe\tcat", "the cat\r\nsat\r\n", "the cat\nsat", "\n\n\nthe\n \n",
    "the\u3000cat\xa0sat\u2028on\x85the",
    "\x1cthe\x1fcat\x0b\x0csat", "the\u200bcat", "the cat<unk> <unk>, <eos> a<eos>b", "", "   ", "Zoë 🦊 sat",
]  # fmt: skip
spaced_text = st.lists(st.sampled_from([*SPACES, "the", "cat", "sat", "dog", "<unk>", "<eos>", "é", "\r\n", "\ufeff"]))
DIGEST = {
    "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f": 2_088_628,
    "4780fcd561e987ce297832efaa685cc4887effe12eaaa1bfa2955332ce71da6d": 2_088_651,  # see named_datasets.py
}
"""Tokens of WikiText-2's training file, as published, and as it is rebuilt from Hugging Face's copy."""


def slow(text: str, words: list[str]) -> list[int]:
    """The ids by the definition alone, a character at a time."""
    found, word = [], ""
    for char in text + " ":
        if not char.isspace():
            word += char
            continue
        found += [word] if word else []
        found += [LINE_END] if char == "\n" else []
        word = ""
    return [words.index(word if word in words else UNKNOWN) for word in found]


def test_ids_go_by_frequency_then_by_the_word() -> None:
    assert WORDS.words[:3] == ["<eos>", "cat", "="]
    assert WORDS.words == sorted(WORDS.words, key=lambda word: (-TEXT.replace("\n", "<eos>").split().count(word), word))
    assert (WORDS.unk_id, WORDS.eos_id, WORDS.special_tokens) == (WORDS.words.index("<unk>"), None, {})
    assert WordTokenizer.from_texts(TEXT.split(" ")).fingerprint == WORDS.fingerprint, "chunks change nothing"


@pytest.mark.parametrize(
    ("text", "spelled"),
    [("sat.\n\nThe", "sat. \n \n The"), ("\n", " \n"), ("\tthe  cat\r\n", " the cat \n"), ("cat ", "cat "), ("", "")],
)
def test_a_part_of_a_text_is_spelled_as_it_is_decoded(text: str, spelled: str) -> None:
    assert WORDS.respaced(text) == spelled
    words = WordTokenizer.from_texts([f"the{text} cat"])
    assert spelled in words.decode(words.encode(f"the{text} cat"))


@pytest.mark.parametrize(
    ("expression", "shown"),
    [
        (r"\n\n", " the cat sat."), ("\n\n", " the cat sat."), (r" \n \n", " the cat sat."),
        (r"\.\n{2}", " the cat sat"),
        (r"\n(?=The)", " the cat sat. \n"), (r"(?<=\n)The", " the cat sat. \n \n "), (r"[\n]\s", " the cat sat. "),
        (r"\\n|[[:digit:]\n]\d|\n+x", None), ("(?x)\\n # ends\n\\n", " the cat sat."), (r"(\n)+END", None),
    ],
)  # fmt: skip
def test_a_stop_expression_with_line_ends_matches_them_as_they_are_decoded(expression: str, shown: str | None) -> None:
    text = "the cat sat.\n\nThe dog" + "\n" * 40
    words = WordTokenizer.from_texts([text])
    row = Row(words, GenerationConfig(stop_regex=expression))
    found = "".join(map(row.push, words.encode(text))) + row.end("length")
    assert found == (words.decode(words.encode(text)) if shown is None else shown)


def test_a_limit_keeps_the_most_frequent_words_next_to_the_two_names() -> None:
    few = WordTokenizer.from_texts(["b b b a a c\n"], 4)
    assert few.words == ["b", "a", "<eos>", "<unk>"]
    assert few.encode("a b c d") == [1, 0, 3, 3]
    assert few.unknown_parts("a c d c") == ["c", "d"]
    assert WordTokenizer.from_texts(["b b b a a c\n"], 3).words == ["b", "<eos>", "<unk>"]
    assert WordTokenizer.from_texts(["c\n"], 99).vocab_size == 3


@pytest.mark.parametrize("word", ["", " ", "a b", "a\n", "\u2003"])
def test_what_is_not_one_word_is_refused(word: str) -> None:
    with pytest.raises(TokenizerError, match="is not one word"):
        WordTokenizer(["<eos>", "<unk>", word])


@pytest.mark.parametrize(
    ("vocab_size", "text", "message"), [(2, "a", "vocab_size 2 is too small"), (9, " \n", "no words but")]
)
def test_what_cannot_be_learned_is_one_error(vocab_size: int, text: str, message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        WordTokenizer.from_texts([text], vocab_size)


def test_the_white_space_is_that_of_python() -> None:
    assert sorted(SPACES) == [chr(code) for code in range(0x110000) if chr(code).isspace()]


@pytest.mark.parametrize("text", SPACED)
def test_odd_white_space_is_split_alike_by_us_by_hugging_face_and_by_transformers(text: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    WORDS.save(tmp_path)
    ids = slow(text, WORDS.words)
    assert WORDS.encode(text) == WORDS.encode_array(text).tolist() == ids
    theirs = Theirs.from_file(str(tmp_path / "tokenizer.json"))
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    assert theirs.encode(text).ids == fast.encode(text) == ids
    assert theirs.decode(ids) == fast.decode(ids, clean_up_tokenization_spaces=False) == WORDS.decode(ids)


@given(parts=spaced_text)
def test_any_text_gives_the_ids_of_the_definition_and_of_hugging_face(parts: list[str]) -> None:
    text = "".join(parts)
    assert WORDS.encode(text) == Theirs.from_str(WORDS.to_json()).encode(text).ids == slow(text, WORDS.words)


@given(parts=spaced_text, size=st.integers(1, 12))
def test_a_text_in_pieces_gives_the_ids_of_the_whole(parts: list[str], size: int) -> None:
    cutter, ids = Cutter(WORDS.safe_cut, size), []
    for part in parts:
        ids += WORDS.encode(cutter.add(part))
    assert ids + WORDS.encode(cutter.end()) == WORDS.encode("".join(parts))


@pytest.mark.parametrize(
    ("text", "cut"), [("one two", 4), ("one two ", 7), ("one", 0), ("", 0), (" a", 1), ("a\nb", 2)]
)
def test_the_cut_is_the_last_place_next_to_white_space(text: str, cut: int) -> None:
    assert WORDS.safe_cut(text) == cut


def test_a_text_in_the_form_of_wikitext_comes_back_and_of_others_the_words_and_lines_do() -> None:
    ids = WORDS.encode(TEXT)
    assert WORDS.decode(ids) == TEXT == b"".join(map(WORDS.token_bytes, ids)).decode()
    assert WORDS.decode(WORDS.encode("the\tcat\r\nsat  on it")) == " the cat \n sat on <unk>"


def test_the_words_that_a_text_spells_unk_are_known() -> None:
    text = "<unk> the <unk>\n<unk><unk> dog <unk>, x<unk> <unk>"
    assert WORDS.unknown_parts(text) == ["<unk><unk>", "dog", "<unk>,", "x<unk>"]
    assert WORDS.spelled_unknown(text) == 3
    assert (WORDS.encode_array(text) == WORDS.unk_id).sum() == 3 + 4


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"normalizer": {"type": "Lowercase"}}, "its normalizer is not as minigpt writes it for words"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "its pre_tokenizer is not"),
        ({"decoder": None}, "its decoder is not"),
        ({"added_tokens": [{"id": 0, "content": "<eos>", "special": True}]}, "its added_tokens is not"),
        (
            {"model": {"type": "WordLevel", "vocab": {"a b": 0, "<eos>": 1, "<unk>": 2}, "unk_token": "<unk>"}},
            "'a b' is",
        ),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<eos>": 1}, "unk_token": "<unk>"}}, "with <eos> and <unk>"),
        ({"model": {"type": "WordLevel", "vocab": {"a": 0, "<unk>": 2}, "unk_token": "<unk>"}}, "without a hole"),
    ],
)
def test_a_file_of_others_is_refused_by_the_part(part: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(WORDS.to_tree() | part))
    with pytest.raises(TokenizerError, match=message):
        load(tmp_path)


def test_the_config_takes_all_words_unless_it_says_how_many() -> None:
    assert tokenizers.build(load_config(None, {"tokenizer.kind": "word"}).tokenizer, [TEXT]).words == WORDS.words
    assert tokenizers.build(TokenizerConfig(kind="word", vocab_size=5), [TEXT]).vocab_size == 5
    assert TokenizerConfig(kind="bpe").vocab_size == 4096


def test_prepared_files_have_the_ids_of_the_text_and_a_token_for_each_word_and_line(tmp_path: Path) -> None:
    text = TEXT * 40_000  # several pieces, and all lines begin with white space
    (tmp_path / "my.txt").write_text(text)
    config = DataConfig(source=str(tmp_path / "my.txt"), cache_dir=str(tmp_path / "cache"))
    prepared = prepare(config, WORDS, WORDS.safe_cut, workers=2)
    cut = int(0.9 * len(text))
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert np.array_equal(prepared.splits[split].tokens, WORDS.encode_array(part))
        statistics = TextStatistics()
        statistics.add(part, ends=True)
        assert prepared.splits[split].count == statistics.words == prepared.meta["splits"][split]["words"]


def test_wikitext_2_has_the_ids_and_tokens_that_papers_report(mirror: Path) -> None:
    folder = mirror / "wikitext-2"
    data = load_config(None, {"data.source": "wikitext-2", "tokenizer.kind": "word"})
    from minigpt.runs.data import make_tokenizer

    tokenizer = make_tokenizer(data)
    texts = {name: (folder / f"{name}.txt").read_bytes() for name in ("train", "valid", "test")}
    counts = {name: len(tokenizer.encode_array(text.decode())) for name, text in texts.items()}
    train = DIGEST[hashlib.sha256(texts["train"]).hexdigest()]
    assert tokenizer.vocab_size == WIKITEXT_2 == 33_278
    assert counts == {"train": train, "valid": 217_646, "test": 245_569}
    for name in ("valid", "test"):
        assert tokenizer.decode(tokenizer.encode_array(texts[name].decode())).encode() == texts[name]
        assert not tokenizer.unknown_parts(texts[name].decode())
