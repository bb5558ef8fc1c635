"""Test every kind of tokenizer: ids, text, streams, files, and that Hugging Face `tokenizers` reads the same ids."""

import json
import logging
import os
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Theirs

from minigpt import files
from minigpt.config import TokenizerConfig
from minigpt.errors import StorageError, TokenizerError
from minigpt.tokenizers import (
    EOS,
    PAD,
    UNK,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TextStream,
    Tokenizer,
    WordTokenizer,
    build,
    load,
    patterns,
)

ADVERSARIAL = [
    "",
    " ",
    "Once upon a time, there was a fox.\n",
    "I'll don't WE'RE o'clock ''s 'ſ it'S",
    "  two  spaces   and\ttabs\t\tand trailing   ",
    "\n\n\nlines\r\n\r\nwindows\rold mac\n \n  \n\tindent",
    "naïve café Ünïcödé Ελληνικά Привет עברית العربية हिन्दी",
    "日本語の文章。\n中文、標點！　全角スペース",
    "🦊 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 e\u0301 \u0301alone a\u0300\u0316",
    "\x00\x01\x1b[31m\x1c\x1f\x7f\x80\x85\u200b\u2028\u2029\ufeff\ufffd\U0010ffff",
    "1234567890 ١٢٣ ½ Ⅷ x² 3.14e-10",
    "<|endoftext|> <|unk|> <|pad|><|endoftext",
    "def f(x):\n    return {'a': [1, 2], \"b\": x ** 2}  # !!!???...\n\n\n    pass",
    "a" * 300 + " " * 300 + "." * 300,
]
TEXT = "\n".join(ADVERSARIAL) + " the cat sat on the mat and the rat sat on the cat." * 20

# Text of characters that every Unicode version in use treats in the same way, and no lone surrogates.
unicode_text = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co")), max_size=60)


def tokenizers() -> dict[str, Tokenizer]:
    """One of each, with settings that are not the defaults."""
    return {
        "char": CharTokenizer.from_texts([TEXT]),
        "char, small": CharTokenizer("abc \n🦊"),
        "char, error": CharTokenizer.from_texts([TEXT], unknown="error"),
        "byte": ByteTokenizer(),
        "bpe, gpt4": BPETokenizer.train([TEXT], 330, "gpt4"),
        "bpe, gpt2": BPETokenizer.train([TEXT], 311, "gpt2"),
        "bpe, no merges": BPETokenizer.train([TEXT], 260, "gpt2"),
        "word": WordTokenizer.from_texts([TEXT], 40),
    }


ALL = tokenizers()
LOSSLESS = [name for name in ALL if name not in ("char, small", "word")]


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("text", ADVERSARIAL)
def test_text_survives_encoding_and_decoding(name: str, text: str) -> None:
    tokenizer = ALL[name]
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()
    assert not set(ids) & set(tokenizer.special_tokens.values())  # names of special tokens are ordinary text


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("text", ADVERSARIAL)
def test_the_array_holds_the_ids_of_the_list(name: str, text: str) -> None:
    array = ALL[name].encode_array(text)
    assert array.dtype == np.uint16 == ALL[name].dtype
    assert array.tolist() == ALL[name].encode(text)


@pytest.mark.parametrize("name", ALL)
def test_hugging_face_reads_the_file_to_identical_ids(name: str, tmp_path: Path) -> None:
    ours = ALL[name]
    ours.save(tmp_path)
    theirs = Theirs.from_file(str(tmp_path / "tokenizer.json"))
    assert theirs.get_vocab_size() == ours.vocab_size
    assert {token: theirs.token_to_id(token) for token in ours.special_tokens} == ours.special_tokens
    for text in ADVERSARIAL:
        # They always parse special tokens in text, as we do with special=True.
        assert theirs.encode(text).ids == ours.encode(text, special=True), text
    for text in ADVERSARIAL[:-3]:
        ids = ours.encode(text)
        if ours.unk_id not in ids:
            assert theirs.decode(ids) == ours.decode(ids)
            assert ours.decode(ids) == text or not ours.keeps_text


@settings(max_examples=150)
@given(text=unicode_text, name=st.sampled_from([name for name in ALL if name != "char, error"]))
def test_hugging_face_agrees_on_any_text(text: str, name: str) -> None:
    theirs = Theirs.from_str(ALL[name].to_json())
    assert theirs.encode(text).ids == ALL[name].encode(text, special=True)


def test_hugging_face_refuses_an_unknown_character_too_where_we_do() -> None:
    ours = CharTokenizer("ab", unknown="error")
    with pytest.raises(Exception, match="Missing"):
        Theirs.from_str(ours.to_json()).encode("abc")


@pytest.mark.parametrize("name", ALL)
def test_saved_and_loaded_is_the_same_tokenizer(name: str, tmp_path: Path) -> None:
    ours = ALL[name]
    ours.save(tmp_path / "new" / "mine.json")
    again = load(tmp_path / "new" / "mine.json")
    assert type(again) is type(ours)
    for attribute in ("kind", "vocab_size", "special_tokens", "eos_id", "bos_id", "pad_id", "unk_id", "fingerprint"):
        assert getattr(again, attribute) == getattr(ours, attribute)
    for attribute in ("pattern", "merges", "unknown", "characters", "words", "unit", "keeps_text"):
        assert getattr(again, attribute, None) == getattr(ours, attribute, None)
    assert [again.token_bytes(id_) for id_ in range(again.vocab_size)] == [
        ours.token_bytes(id_) for id_ in range(ours.vocab_size)
    ]
    assert again.encode(TEXT) == ours.encode(TEXT)
    again.save(tmp_path)
    assert load(tmp_path).to_json() == ours.to_json()


def test_fingerprints_differ_by_tokenizer_and_not_by_version() -> None:
    assert len({tokenizer.fingerprint for tokenizer in ALL.values()}) == len(ALL)
    # Token files and checkpoints store it: changing the canonical form makes them unusable.
    assert ByteTokenizer().fingerprint == "20fd8b8c5a81f1e14a40631df964457e4af31dd6b413ea44d8facc1c959c147e"
    assert CharTokenizer("ba").fingerprint == CharTokenizer("aab").fingerprint


def test_special_tokens_are_parsed_only_on_request() -> None:
    for tokenizer in (each for each in ALL.values() if each.special_tokens):
        text = f"a{EOS}b{EOS}"
        ids = tokenizer.encode(text, special=True)
        assert ids.count(tokenizer.eos_id) == 2
        assert tokenizer.decode(ids) == "ab"
        assert tokenizer.decode(ids, skip_special=False) == text


def test_ids_of_char_are_unk_eos_then_sorted_characters() -> None:
    tokenizer = CharTokenizer.from_texts(iter(["ba", "a\n"]))
    assert tokenizer.special_tokens == {UNK: 0, EOS: 1}
    assert tokenizer.encode("\nab") == [2, 3, 4]
    assert (tokenizer.vocab_size, tokenizer.pad_id, tokenizer.bos_id) == (5, None, None)


@pytest.mark.parametrize("stranger", ["z", "c", "é", "🦊", "\U0010ffff"])
def test_an_unknown_character_is_unk_and_shows_as_a_replacement(stranger: str) -> None:
    tokenizer = CharTokenizer("abd")
    ids = tokenizer.encode(f"a{stranger}b")
    assert ids == [2, tokenizer.unk_id, 3]
    assert tokenizer.decode(ids) == "a\ufffdb"
    assert tokenizer.decode(ids, skip_special=False) == f"a{UNK}b"
    assert tokenizer.token_bytes(ids[1]) == b""


def test_an_unknown_character_can_be_an_error_that_names_it_and_its_place() -> None:
    tokenizer = CharTokenizer("ab", unknown="error")
    assert tokenizer.special_tokens == {EOS: 0}
    with pytest.raises(TokenizerError, match=r"'é' at position 3 .*tokenizer\.unknown token"):
        tokenizer.encode("abaéb")


def test_ids_of_byte_are_the_bytes() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.encode("é\n") == [0xC3, 0xA9, 10]
    assert (tokenizer.eos_id, tokenizer.bos_id, tokenizer.pad_id, tokenizer.vocab_size) == (256, 257, 258, 259)


def test_a_large_vocabulary_gets_wider_arrays() -> None:
    tokenizer = CharTokenizer(map(chr, range(0x10000, 0x21000)))
    array = tokenizer.encode_array(chr(0x20FFF))
    assert array.dtype == np.uint32
    assert array[0] == tokenizer.vocab_size - 1 > 2**16


@pytest.mark.parametrize("name", LOSSLESS)
def test_lone_surrogates_become_replacement_characters(name: str) -> None:
    tokenizer = ALL[name]
    assert tokenizer.encode("a\ud800b") == tokenizer.encode("a\ufffdb")
    assert tokenizer.encode("\ud83e\udd8a") == tokenizer.encode("🦊")  # a surrogate pair is read as its character


def test_decode_takes_arrays_and_refuses_ids_that_are_not_there() -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(np.array([104, 105], dtype=np.uint16)) == "hi"
    for wrong in (-1, 259):
        with pytest.raises(TokenizerError, match=r"not one of this byte tokenizer's 0\.\.258"):
            tokenizer.decode([104, wrong])
        with pytest.raises(TokenizerError):
            tokenizer.token_bytes(wrong)


@settings(max_examples=300)
@given(data=st.data(), name=st.sampled_from(sorted(ALL)), skip=st.booleans())
def test_a_stream_of_any_ids_adds_up_to_their_decoding(data: st.DataObject, name: str, skip: bool) -> None:
    tokenizer = ALL[name]
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    stream = TextStream(tokenizer, skip_special=skip)
    for _ in range(2):  # a flushed stream can be used again
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids, skip_special=skip)


@settings(max_examples=100)
@given(text=unicode_text, name=st.sampled_from(["byte", "bpe, gpt4", "bpe, no merges"]))
def test_a_stream_emits_a_character_with_its_last_byte_never_a_part(text: str, name: str) -> None:
    tokenizer = ALL[name]
    stream, done = TextStream(tokenizer), b""
    for id_ in tokenizer.encode(text):
        before = done.decode(errors="ignore")
        done += tokenizer.token_bytes(id_)
        assert before + stream.push(id_) == done.decode(errors="ignore")
    assert stream.flush() == ""


def test_a_failed_save_leaves_the_old_file_whole_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ByteTokenizer().save(tmp_path)
    before = (tmp_path / "tokenizer.json").read_bytes()

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        ALL["char"].save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["tokenizer.json"]
    assert (tmp_path / "tokenizer.json").read_bytes() == before


def test_a_directory_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        ByteTokenizer().save(tmp_path / "file" / "below")


def _changed(tokenizer: Tokenizer, **parts: object) -> str:
    return json.dumps(tokenizer.to_tree() | parts)


def _with_model(tokenizer: Tokenizer, **parts: object) -> str:
    tree = tokenizer.to_tree()
    return json.dumps(tree | {"model": tree["model"] | parts})


BPE = ALL["bpe, gpt4"]
MERGES = BPE.to_tree()["model"]["merges"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("not json", "not JSON"),
        ("\xff", "not JSON"),
        ("[]", "not a tokenizer.json"),
        ('{"model": {}}', "not a tokenizer.json"),
        (ByteTokenizer().to_json()[:-200], "not JSON"),
        (_changed(BPE, normalizer={"type": "NFKC"}), r"normalizer \(NFKC\)"),
        (_changed(BPE, post_processor={"type": "TemplateProcessing"}), r"post-processor \(TemplateProcessing\)"),
        (_changed(BPE, pre_tokenizer={"type": "Whitespace"}), "pre-tokenizer"),
        (_with_model(BPE, type="Unigram"), r"model \(Unigram\)"),
        (_with_model(BPE, byte_fallback=True), "byte_fallback"),
        (_with_model(BPE, merges=MERGES[::-1]), "order of their ids"),
        (_with_model(BPE, merges=MERGES[:-1]), "not the 256 bytes and their merges"),
        (_with_model(BPE, merges=[*MERGES, "a nonsense"]), "not a tokenizer.json"),
        (_changed(BPE, pre_tokenizer=patterns.pre_tokenizer_tree("\ud800|\\s+")), "may run differently"),
        (_with_model(ALL["char"], vocab={UNK: 0, EOS: 1, "a": 3}), "not a char tokenizer as minigpt writes it"),
        (_with_model(ALL["byte"], vocab={"a": 0}), "not a byte tokenizer as minigpt writes it"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_clear_error(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content.encode("latin-1" if content == "\xff" else "utf-8"))
    with pytest.raises(TokenizerError, match=message) as error:
        load(tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_pipe_that_nobody_writes_to_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "tokenizer.json")
    monkeypatch.setattr(files, "WAIT", 0.01)
    with pytest.raises(TokenizerError, match="nobody wrote to this pipe"):
        load(tmp_path)


def test_a_file_with_thousands_of_added_tokens_loads_at_once(tmp_path: Path) -> None:
    flags = {"special": True, "normalized": False}
    added = [{"id": BPE.vocab_size + at, "content": f"<|{at}|>", **flags} for at in range(20_000)]
    (tmp_path / "tokenizer.json").write_text(_changed(BPE, added_tokens=BPE.to_tree()["added_tokens"] + added))
    start = time.process_time()
    tokenizer = load(tmp_path)
    assert time.process_time() - start < 2  # 0.1 s; ten if each token counted those before it
    assert tokenizer.special_tokens["<|19999|>"] == BPE.vocab_size + 19_999


def test_a_missing_file_is_an_error_that_says_how_to_make_one(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "no.json"):
        with pytest.raises(TokenizerError, match=r"no such tokenizer.*minigpt tokenizer train"):
            load(path)
    (tmp_path / "config.yaml").write_text("")  # a run: a new tokenizer would have other ids
    with pytest.raises(TokenizerError, match=r"no such tokenizer.*put back the tokenizer.json of this model"):
        load(tmp_path)


def test_build_makes_what_the_config_says(tmp_path: Path) -> None:
    def texts() -> list[str]:
        return [TEXT[:100], "", TEXT[100:]]

    assert build(TokenizerConfig(kind="byte"), []).kind == "byte"
    char = build(TokenizerConfig(kind="char", unknown="error"), iter(texts()))
    assert char.fingerprint == ALL["char, error"].fingerprint
    bpe = build(TokenizerConfig(kind="bpe", vocab_size=311, pattern="gpt2"), iter(texts()))
    assert bpe.fingerprint == ALL["bpe, gpt2"].fingerprint
    bpe.save(tmp_path)
    assert build(TokenizerConfig(kind="char", path=str(tmp_path)), iter(())).fingerprint == bpe.fingerprint
    with pytest.raises(TokenizerError, match="no such tokenizer"):
        build(TokenizerConfig(path=str(tmp_path / "no")), [])


@pytest.mark.parametrize("kind", ["char", "bpe", "word"])
def test_no_text_is_an_error(kind: str) -> None:
    with pytest.raises(TokenizerError, match="give a text that"):
        build(TokenizerConfig.model_validate({"kind": kind}), ["", ""])


def test_a_vocabulary_too_small_for_the_bytes_is_an_error() -> None:
    with pytest.raises(TokenizerError, match=r"vocab_size 259 is too small.*need 260"):
        build(TokenizerConfig(kind="bpe", vocab_size=259), ["abc"])


def test_a_text_too_small_for_the_vocabulary_gives_less_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        tokenizer = build(TokenizerConfig(kind="bpe", vocab_size=1000), ["abab abab"])
    assert [tokenizer.token_bytes(id_) for id_ in range(260, tokenizer.vocab_size)] == [b"ab", b"abab"]
    assert "too small for 1000 tokens: vocab_size is 262" in caplog.text


@pytest.mark.parametrize("pattern", patterns.PATTERNS)
def test_a_text_with_many_marks_names_the_pattern_that_keeps_its_words(
    pattern: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = TokenizerConfig.model_validate({"kind": "bpe", "vocab_size": 500, "pattern": pattern})
    tokenizer = build(config, ["नमस्ते दुनिया " * 20])
    whole = pattern == "gpt4o"
    assert (" दुनिया".encode() in map(tokenizer.token_bytes, range(tokenizer.vocab_size))) == whole
    assert (f"36 % of the characters are combining marks, and the pattern {pattern} cuts" in caplog.text) != whole
    assert ("the pieces of words are too short for 500 tokens" in caplog.text) != whole


def test_bytes_beyond_the_training_limit_are_not_learned_from() -> None:
    config = TokenizerConfig(kind="bpe", vocab_size=300, max_train_bytes=len("é ab ab ab".encode()))
    limited = build(config, ["é ab", " ab ab", " cd cd cd cd cd"])
    assert limited.fingerprint == build(config, ["é ab ab ab"]).fingerprint
    assert [limited.token_bytes(id_) for id_ in range(260, limited.vocab_size)] == [b"ab", b" ab"]


def test_pad_and_eos_of_bpe_are_counted_inside_its_size() -> None:
    assert BPE.vocab_size == 330
    assert BPE.special_tokens == {PAD: 0, UNK: 1, "<|bos|>": 2, EOS: 3}


def test_bytes_are_spelt_as_gpt2_spells_them() -> None:
    assert patterns.spell(b" the\n") == "ĠtheĊ"
    assert patterns.unspell(patterns.spell(bytes(range(256)))) == bytes(range(256))
