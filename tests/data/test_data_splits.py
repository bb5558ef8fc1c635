"""Test that splits by characters are exact, and that splits by documents have no leaks."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from split_text import jsonl, split_of

from minigpt.config import DataConfig
from minigpt.data import corpus, open_corpus, text_chunks
from minigpt.data.corpus import CHUNK, FEW
from minigpt.errors import DataError
from minigpt.tokenizers.cutter import Cutter


def test_shakespeare_is_split_as_nanogpt_splits_it(mirror: Path) -> None:
    data = (mirror / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")
    config = DataConfig(source="shakespeare")
    n = len(data)  # as in nanoGPT's data/shakespeare_char/prepare.py
    assert "".join(text_chunks("shakespeare", config, "train")) == data[: int(n * 0.9)]
    assert "".join(text_chunks("shakespeare", config, "val")) == data[int(n * 0.9) :]


@given(n=st.integers(2, 3000), val_fraction=st.floats(0.01, 0.99))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_one_document_is_cut_by_characters(tmp_path: Path, n: int, val_fraction: float) -> None:
    text = "".join(chr(0x4E00 + i % 5000) for i in range(n))
    path = tmp_path / f"{n}.txt"
    path.write_text(text, encoding="utf-8")
    config = DataConfig(source=str(path), val_fraction=val_fraction)
    cut = int((1 - val_fraction) * n)
    if cut in (0, n):
        with pytest.raises(DataError, match="cannot be split"):
            open_corpus(config)
    else:
        assert split_of(config, "train") == [text[:cut]]
        assert split_of(config, "val") == [text[cut:]]


def test_the_cut_counts_characters_after_cleaning(tmp_path: Path) -> None:
    (tmp_path / "my.txt").write_bytes("e\u0301\r\n".encode() * 50)
    config = DataConfig(source=str(tmp_path / "my.txt"), clean=("nfc", "newlines"))
    assert split_of(config, "train") == ["é\n" * 45]


def test_a_cut_in_a_later_block_is_as_exact(tmp_path: Path) -> None:
    text = "0123456789" * (CHUNK // 4)
    (tmp_path / "my.txt").write_text(text)
    config = DataConfig(source=str(tmp_path / "my.txt"), val_fraction=0.25)
    assert ("".join(split_of(config, "train")), "".join(split_of(config, "val"))) == (
        text[: len(text) * 3 // 4],
        text[len(text) * 3 // 4 :],
    )


texts = st.lists(st.text("ab \n", min_size=1, max_size=6), min_size=2, max_size=40)


@given(texts=texts, val_fraction=st.floats(0.05, 0.95))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_documents_stay_whole_and_copies_stay_together(tmp_path: Path, texts: list[str], val_fraction: float) -> None:
    path = tmp_path / f"{len(list(tmp_path.iterdir()))}.jsonl"  # surveys are kept by name, size and time
    config = jsonl(path, texts).model_copy(update={"val_fraction": val_fraction})
    if len(set(texts)) == 1:
        with pytest.raises(DataError, match="all the same text"):
            open_corpus(config)
        return
    train, val = split_of(config, "train"), split_of(config, "val")
    assert sorted(train + val) == sorted(texts)
    assert train
    assert val
    assert not set(train) & set(val)


def test_few_documents_come_as_near_to_the_share_as_whole_documents_can(tmp_path: Path) -> None:
    for count in (10, 40, 200):
        texts = [f"document {n} " + "x" * (n % 17) for n in range(count)]
        config = jsonl(tmp_path / f"{count}.jsonl", texts)
        val, total = sum(map(len, split_of(config, "val"))), sum(map(len, texts))
        assert abs(val - 0.1 * total) <= max(map(len, texts))


def test_one_huge_document_among_small_ones_trains(tmp_path: Path) -> None:
    texts = ["y" * 100_000, *(f"small {n}" for n in range(5))]
    config = jsonl(tmp_path / "my.jsonl", texts)
    assert texts[0] in split_of(config, "train")
    assert split_of(config, "val")


def test_many_documents_split_by_hash_so_new_ones_move_none(tmp_path: Path) -> None:
    texts = [f"document number {n}" for n in range(4 * FEW)]
    val = split_of(jsonl(tmp_path / "a.jsonl", texts), "val")
    assert 0.085 < len(val) / len(texts) < 0.115
    more = split_of(jsonl(tmp_path / "b.jsonl", [*reversed(texts), "one more", *texts[:50]]), "val")
    assert set(val) == set(more) - {"one more"}


def test_few_different_documents_in_many_copies_leave_no_side_empty(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["first", "second one", ""] * (2 * FEW))
    assert {len(set(split_of(config, "train"))), len(set(split_of(config, "val")))} == {1}


def test_documents_that_cleaning_empties_are_left_out(tmp_path: Path) -> None:
    texts = ["日本語", "one", "", "two", "three"]
    config = jsonl(tmp_path / "my.jsonl", texts).model_copy(update={"clean": ("ascii",)})
    assert sorted(split_of(config, "train") + split_of(config, "val")) == ["one", "three", "two"]
    assert open_corpus(config).survey.documents == 3


def test_a_single_document_is_one_whatever_the_kind_of_file(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["0123456789" * 3, ""])
    assert not open_corpus(config).many
    assert split_of(config, "train") == [("0123456789" * 3)[:27]]


def test_a_changed_file_is_surveyed_again(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["a", "b"])
    assert open_corpus(config).survey.documents == 2
    jsonl(tmp_path / "my.jsonl", ["a", "b", "c"])
    assert open_corpus(config).survey.documents == 3


def test_a_file_that_grows_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["a", "b"])
    corpus = open_corpus(config)
    jsonl(tmp_path / "my.jsonl", ["a", "b", "c"])
    with pytest.raises(DataError, match="changed while it was read"):
        list(corpus.pieces())
    jsonl(tmp_path / "my.jsonl", ["a"])
    with pytest.raises(DataError, match="changed while it was read"):
        list(corpus.pieces())


def test_chunks_are_whole_lines_of_about_a_million_characters(tmp_path: Path) -> None:
    text = "a line of text\n  indented\n" * (CHUNK // 6)
    (tmp_path / "my.txt").write_text(text)
    chunks = list(text_chunks(str(tmp_path / "my.txt"), DataConfig(), None))
    assert "".join(chunks) == text
    assert len(chunks) > 3
    assert max(map(len, chunks)) <= 3 * CHUNK
    cut = int(0.9 * len(text))
    inner = [chunk for chunk in chunks if not text[:cut].endswith(chunk)]
    assert all(chunk.endswith("  indented\n") for chunk in inner)


def test_a_text_without_lines_is_still_cut_into_chunks(tmp_path: Path) -> None:
    text = "x" * (20 * CHUNK)
    (tmp_path / "my.txt").write_text(text)
    chunks = list(text_chunks(str(tmp_path / "my.txt"), DataConfig(val_fraction=0.05), "train"))
    assert (len(chunks), sum(map(len, chunks))) == (2, 19 * CHUNK)


@pytest.mark.parametrize("text", ["a", ""])
def test_a_text_too_short_to_split_says_so(tmp_path: Path, text: str) -> None:
    config = jsonl(tmp_path / "my.jsonl", [text])
    with pytest.raises(DataError, match=r"1 character cannot be split|no text"):
        open_corpus(config)


@pytest.mark.parametrize(("line", "end"), [(" the cat sat \n", "\n"), ("the cat sat ", "")])
def test_a_chunk_of_lines_that_begin_with_space_ends_with_a_line_or_a_word(
    line: str, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "LONGEST", 1000)
    cutter, text, chunks = Cutter(corpus._chunk_cut, 100, longest=1000), line * 1000, []
    for start in range(0, len(text), 70):
        chunks += [chunk] if (chunk := cutter.add(text[start : start + 70])) else []
    assert len(chunks) > 5 and "".join(chunks) + cutter.end() == text
    assert all(chunk.endswith(end) for chunk in chunks)
    assert {word for chunk in chunks for word in chunk.split()} == {"the", "cat", "sat"}
