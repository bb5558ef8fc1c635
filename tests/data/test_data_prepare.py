"""Test that prepared ids equal those of each document encoded alone, figures are right, and nothing is half-written."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from split_text import cached, jsonl

from minigpt import tokenizers
from minigpt.config import DataConfig, TokenizerConfig
from minigpt.data import load_prepared, open_corpus, prepare
from minigpt.data.encode import CHUNK
from minigpt.data.statistics import TextStatistics, count_words
from minigpt.errors import DataError, TokenFileError
from minigpt.tokenizers import BPETokenizer, ByteTokenizer, safe_cut

PASSAGE = (
    "It was a bright cold day in April, and the clocks were striking 13.\n\n"
    "  indented,  with   spaces\tand tabs \r\n«Ça va?» she'll say: 3.1415926, #42! 日本語です。😀😀\n"
)


@pytest.fixture(scope="module")
def bpe() -> BPETokenizer:
    return BPETokenizer.train([PASSAGE * 3], 350, "gpt4", 10**6)


def numbered(count: int) -> str:
    return "".join(f"{n} {PASSAGE}" for n in range(count))


# --- ids


@pytest.mark.parametrize("kind", ["bpe", "byte", "char"])
def test_a_text_of_many_chunks_has_the_ids_of_the_text_encoded_whole(
    tmp_path: Path, bpe: BPETokenizer, kind: str
) -> None:
    text = numbered(3 * CHUNK // len(PASSAGE))
    (tmp_path / "my.txt").write_bytes(text.encode())
    tokenizer = bpe if kind == "bpe" else tokenizers.build(TokenizerConfig(kind=kind), [text])  # type: ignore[arg-type]
    prepared = prepare(DataConfig(source=str(tmp_path / "my.txt")), tokenizer, safe_cut, workers=3)
    cut = int(0.9 * len(text))
    assert np.array_equal(prepared.splits["train"].tokens, tokenizer.encode_array(text[:cut]))
    assert np.array_equal(prepared.splits["val"].tokens, tokenizer.encode_array(text[cut:]))


def test_gpt2_ids_of_wikitext_are_tiktokens_and_words_are_wikitexts(mirror: Path) -> None:
    tokenizer = tokenizers.build(TokenizerConfig(kind="gpt2"), [])
    prepared = prepare(DataConfig(source="wikitext-2"), tokenizer, safe_cut)
    for split, name in (("val", "valid"), ("test", "test")):
        text = (mirror / "wikitext-2" / f"{name}.txt").read_text(encoding="utf-8")
        assert np.array_equal(prepared.splits[split].tokens, tokenizer.encode_array(text))
    splits = prepared.meta["splits"]
    assert (splits["val"]["words"], splits["test"]["words"]) == (217_646, 245_569)
    # the mirror's file has 23 extra quotation marks, each a word (see data/named_datasets.py)
    extra = 23 if splits["train"]["sha256"].startswith("4780fcd561e987ce") else 0
    assert splits["train"]["words"] == 2_088_628 + extra
    assert not prepared.meta["eos"]


def test_shakespeare_has_nanogpts_published_token_counts(mirror: Path) -> None:
    tokenizer = tokenizers.build(TokenizerConfig(kind="gpt2"), [])
    prepared = prepare(DataConfig(source="shakespeare"), tokenizer, safe_cut)
    assert {split: file.count for split, file in prepared.splits.items()} == {"train": 301_966, "val": 36_059}


def test_eos_follows_every_document_of_many(tmp_path: Path, bpe: BPETokenizer) -> None:
    texts = [f"{n} {PASSAGE}" for n in range(40)] + [numbered(2 * CHUNK // len(PASSAGE))]  # the last has several
    config = jsonl(tmp_path / "my.jsonl", texts)
    prepared = prepare(config, bpe, safe_cut)
    assert bpe.eos_id is not None
    for split, file in prepared.splits.items():
        wanted = []
        for piece in open_corpus(config).pieces(split):
            assert piece.ends  # each JSON document is one piece
            wanted += [*bpe.encode(piece.text), bpe.eos_id]
        assert file.tokens.tolist() == wanted
        assert (file.tokens == bpe.eos_id).sum() == prepared.meta["splits"][split]["documents"]
    assert prepared.meta["eos"] is True


def test_a_single_document_has_no_eos(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.eos_id is not None
    (tmp_path / "my.txt").write_text("0123456789" * 3)
    prepared = prepare(DataConfig(source=str(tmp_path / "my.txt")), tokenizer, safe_cut)
    assert [file.count for file in prepared.splits.values()] == [27, 3]
    assert prepared.meta["eos"] is False


def test_text_without_a_safe_cut_is_encoded_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minigpt.data.encode.MAX_UNCUT", 2 * CHUNK)
    seen: list[int] = []

    class Noting(ByteTokenizer):
        def encode_array(self, text: str) -> np.ndarray:
            seen.append(len(text))
            return super().encode_array(text)

    (tmp_path / "my.txt").write_text("x" * (5 * CHUNK))
    prepared = prepare(DataConfig(source=str(tmp_path / "my.txt")), Noting(), lambda text: 0)
    assert sum(file.count for file in prepared.splits.values()) == 5 * CHUNK
    assert max(seen) <= 3 * CHUNK


# --- figures


def test_figures_are_those_of_the_whole_text(tmp_path: Path, bpe: BPETokenizer) -> None:
    text = numbered(2 * CHUNK // len(PASSAGE))
    (tmp_path / "my.txt").write_bytes(text.encode())
    meta = prepare(DataConfig(source=str(tmp_path / "my.txt")), bpe, safe_cut).meta
    val = text[int(0.9 * len(text)) :]
    figures = meta["splits"]["val"]
    assert figures.pop("tokens") == len(bpe.encode(val))
    assert figures == {
        "bytes": len(val.encode()),
        "chars": len(val),
        "words": len(val.split()) + val.count("\n"),
        "documents": 1,
        "sha256": hashlib.sha256(val.encode()).hexdigest(),
    }
    assert meta["tokenizer"] == {"kind": "bpe", "vocab_size": 350, "fingerprint": bpe.fingerprint}


def test_words_do_not_depend_on_the_borders_of_pieces() -> None:
    for size in range(1, 12):
        whole, parts = TextStatistics(), TextStatistics()
        for document in ("one two  three\n", "four", "five six\n\nseven"):
            whole.add(document, True)
            pieces = [document[at : at + size] for at in range(0, len(document), size)]
            for number, piece in enumerate(pieces, 1):
                parts.add(piece, number == len(pieces))
        assert parts.figures() == whole.figures()
        assert whole.words == 7 + 3


@settings(max_examples=40)
@given(st.text(st.sampled_from("ab é日😀 \t\n\r\x1c\x1f\x85\xa0\u1680\u2003\u2028\u200b\u3000\u3001"), max_size=60))
def test_words_of_long_texts_are_counted_as_split_does(text: str) -> None:
    long = text * (20_000 // max(1, len(text)) + 1)
    assert count_words(long) == len(long.split())


def test_no_white_space_lies_above_the_table_of_it() -> None:
    assert not any(chr(point).isspace() for point in range(0x3001, sys.maxunicode + 1))


def test_progress_ends_at_the_whole(tmp_path: Path) -> None:
    told: list[tuple[str, int, int | None]] = []
    (tmp_path / "my.txt").write_text("0123456789" * 300_000)
    prepare(DataConfig(source=str(tmp_path / "my.txt")), ByteTokenizer(), safe_cut, None, lambda *a: told.append(a))
    encoding = [(done, total) for label, done, total in told if label.startswith("encoding")]
    assert len(encoding) > 3
    assert encoding[-1] == (3_000_000, 3_000_000)


# --- the cache


def test_the_second_time_nothing_is_encoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["one", "two", "three"])
    tokenizer = ByteTokenizer()
    first = prepare(config, tokenizer, safe_cut)
    monkeypatch.setattr(ByteTokenizer, "encode_array", None)
    second = prepare(config, tokenizer, safe_cut)
    assert first.directory == second.directory
    assert first.meta == second.meta == load_prepared(first.directory).meta
    assert tokenizers.load(first.directory).fingerprint == tokenizer.fingerprint


@pytest.mark.parametrize(
    "change",
    [{"clean": ("lower",)}, {"val_fraction": 0.5}, {"encoding": "latin-1"}, {"text_field": "other"}, "text", "tokens"],
)
def test_whatever_the_ids_depend_on_makes_another_directory(tmp_path: Path, change: Any) -> None:
    lines = [json.dumps({"text": f"Text {n}", "other": f"Other {n}"}) + "\n" for n in range(9)]
    path = tmp_path / "my.jsonl"
    path.write_text("".join(lines))
    config, tokenizer = DataConfig(source=str(path)), ByteTokenizer()
    first = prepare(config, tokenizer, safe_cut)
    if change == "text":
        path.write_text("".join(reversed(lines)))
        os.utime(path, ns=(1, 1))  # some systems count the time of a change in steps of 10 ms
    elif change == "tokens":
        tokenizer = BPETokenizer.train([PASSAGE], 300, "gpt2", 10**6)
    else:
        config = config.model_copy(update=change)
    second = prepare(config, tokenizer, safe_cut)
    assert second.directory != first.directory
    assert second.meta["key"] != first.meta["key"]


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, tokenizer = jsonl(tmp_path / "my.jsonl", ["one", "two"]), ByteTokenizer()
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "env"))
    assert (tmp_path / "env" / "prepared") in prepare(config, tokenizer, safe_cut).directory.parents
    config = config.model_copy(update={"cache_dir": str(tmp_path / "dir")})
    assert (tmp_path / "dir" / "prepared") in prepare(config, tokenizer, safe_cut).directory.parents


def test_a_damaged_cache_is_refused_when_loaded_and_healed_when_prepared(tmp_path: Path) -> None:
    config, tokenizer = jsonl(tmp_path / "my.jsonl", ["one", "two"]), ByteTokenizer()
    config = config.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    first = prepare(config, tokenizer, safe_cut)
    for name in ("train.tokens", "val.tokens", "meta.json"):
        path = first.directory / name
        good = path.read_bytes()
        path.write_bytes(good[:-3])
        with pytest.raises(TokenFileError, match="prepare the data again"):
            load_prepared(first.directory)
        assert prepare(config, tokenizer, safe_cut).directory == first.directory
        assert path.read_bytes() == good
    meta = first.directory / "meta.json"
    good = meta.read_bytes()
    for form in ("[]", "3", "[" * 100_000, '{"version": 1}', '{"version": 1, "key": 2, "splits": {"train": 3}}'):
        meta.write_text(form)
        assert prepare(config, tokenizer, safe_cut).directory == first.directory
        assert meta.read_bytes() == good
    assert cached(config) == [first.directory]


def test_another_tokenizers_directory_is_refused(tmp_path: Path) -> None:
    prepared = prepare(jsonl(tmp_path / "my.jsonl", ["one", "two"]), ByteTokenizer(), safe_cut)
    with pytest.raises(TokenFileError, match="another tokenizer"):
        load_prepared(prepared.directory, "00" * 32)


def test_a_directory_of_ones_own(tmp_path: Path) -> None:
    config, tokenizer = jsonl(tmp_path / "my.jsonl", ["one", "two"]), ByteTokenizer()
    out = tmp_path / "deep" / "out"
    first = prepare(config, tokenizer, safe_cut, out)
    assert first.directory == out
    assert prepare(config, tokenizer, safe_cut, out).meta == first.meta
    with pytest.raises(DataError, match="holds another preparation; give --out a new directory"):
        prepare(config.model_copy(update={"clean": ("lower",)}), tokenizer, safe_cut, out)
    (tmp_path / "mine").mkdir()
    prepare(config, tokenizer, safe_cut, tmp_path / "mine")  # an empty folder may be used
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    for place in ("taken", "taken/thesis.txt"):
        with pytest.raises(DataError, match="is not empty; give --out a new directory"):
            prepare(config, tokenizer, safe_cut, tmp_path / place)
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"


def test_the_current_folder_cannot_be_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["one", "two"])
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(DataError, match=r"^\.: cannot be replaced; give --out a new directory in it: prepared$"):
        prepare(config, ByteTokenizer(), safe_cut, Path())


# --- cost


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux: peak memory is read from /proc")
def test_memory_does_not_grow_with_the_text(tmp_path: Path) -> None:
    # not from getrusage: there a child starts with the peak of its parent, this test session
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from minigpt.config import DataConfig\n"
        "from minigpt.data import prepare\n"
        "from minigpt.tokenizers import ByteTokenizer, safe_cut\n"
        "prepare(DataConfig(source=sys.argv[1]), ByteTokenizer(), safe_cut, workers=2)\n"
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])\n"
    )
    peaks = []
    for megabytes in (10, 80):
        path = tmp_path / f"{megabytes}.txt"
        path.write_text("a line of words, one of many\n" * (megabytes * 10**6 // 29))
        done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout) * 1024)
    assert peaks[0] > 10e6
    assert peaks[1] - peaks[0] < 30e6, peaks


def test_preparing_does_not_import_torch() -> None:
    code = "import sys, minigpt.data, minigpt.data.inspect.report; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
