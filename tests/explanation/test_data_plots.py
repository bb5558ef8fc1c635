"""Test pictures of texts and tokenizers by reading back what was drawn."""

import json
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from minigpt.cli import main
from minigpt.config import DataConfig
from minigpt.data.inspect.report import inspect_data
from minigpt.errors import UserError
from minigpt.explanation import draw_text, draw_tokenizer, draw_tokenizers
from minigpt.explanation.canvas import write_figure
from minigpt.explanation.run_plots import draw_runs
from minigpt.tokenizers import ByteTokenizer


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list:
    """Collect every figure instead of writing it, so that tests can read it."""
    kept: list = []
    monkeypatch.setattr("minigpt.explanation.data_plots.write_figure", lambda figure, out: kept.append(figure) or out)
    return kept


def words(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_a_texts_picture_shows_what_was_counted(tmp_path: Path, figures: list) -> None:
    texts = [f"{'word ' * n}$x$ é\n\n" for n in range(1, 40)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    report = inspect_data(DataConfig(source=str(tmp_path / "a.jsonl")), ByteTokenizer())
    draw_text(report, tmp_path / "a.svg")
    ranks, documents, rows, characters = figures[0].axes
    counts = sorted(Counter("".join(texts).encode()).values(), reverse=True)
    np.testing.assert_array_equal(ranks.get_lines()[0].get_xydata(), list(enumerate(counts, 1)))
    assert words(ranks) == ["' '", "'<c3>'"], "the tenth token is one byte of é"
    for axes, lengths in ((documents, [len(text) for text in texts]),
                          (rows, [len(line) for text in texts for line in text[:-1].split("\n")])):  # fmt: skip
        kept = [length for length in lengths if length]
        bars = [(bar.get_x(), bar.get_x() + bar.get_width(), bar.get_height()) for bar in axes.patches]
        assert [height for *_, height in bars] == [
            sum(low <= length < high for length in kept) for low, high, _ in bars
        ]
        assert sum(height for *_, height in bars) == len(kept)
    assert "39 empty" in rows.get_title(loc="left")
    assert [label.get_text() for label in characters.get_xticklabels()][:2] == ["' '", "d"]


def test_a_text_of_one_document_and_words_has_zipfs_law(tmp_path: Path, figures: list) -> None:
    report = {
        "source": "mine", "splits": {"train": {}, "val": {}}, "document_length": {"counts": [0, 2]},
        "line_length": {"mean": 5, "longest": 9, "counts": [0, 3], "histogram": {"edges": [1, 9], "counts": [3]}},
        "characters": {"distinct": 2, "top": [["a", 5], ["漢", 2]]},
        "tokens": {"used": 300, "top": [[" the", 7, 6000]], "ranks": [[n, 6000 / n] for n in (1, 2, 10, 60, 300)]},
    }  # fmt: skip
    draw_text(report, tmp_path / "a.png")
    ranks, rows, characters = figures[0].axes
    np.testing.assert_allclose(ranks.get_lines()[1].get_ydata(), ranks.get_lines()[0].get_ydata())
    assert "rank$^{-1.00}$" in words(ranks)[0] and "lines" in rows.get_title(loc="left")
    assert [label.get_text() for label in characters.get_xticklabels()] == ["a", "U+6F22"]


class Vocabulary(ByteTokenizer):
    """A tokenizer that only has the given pieces."""

    def __init__(self, pieces: list[bytes]):
        super().__init__()
        self._pieces, self.vocab_size = pieces, len(pieces)


def test_a_vocabularys_picture_counts_tokens_by_length_and_kind(tmp_path: Path, figures: list) -> None:
    pieces = [b" the", b"cat", b"dog", b"\xf0\x9f", b"\xc3\xa9", b" ", b"-" * 90, b"-" * 16, b""]
    draw_tokenizer(Vocabulary(pieces), tmp_path / "a.png")
    [axes] = figures[0].axes
    bars = {
        kind.get_label(): {place: int(bar.get_height()) for place, bar in enumerate(kind, 1) if bar.get_height()}
        for kind in axes.containers
    }
    assert bars == {
        "after a space": {4: 1},
        "within a word, or a mark": {1: 1, 2: 1, 3: 2, 16: 2},
        "part of a character": {2: 1},
    }
    assert axes.get_xticklabels()[-1].get_text() == "16+"
    assert axes.get_title(loc="left") == "8 byte tokens by length: mean 15.1, longest 90"


def test_dollars_in_the_name_of_a_text_are_no_formula(tmp_path: Path) -> None:
    rows = [{"name": "$\\x$", "kind": "byte", "vocab_size": 259, "bytes_per_token": 1.0}]
    assert draw_tokenizers(rows, tmp_path / "a.svg", "my $\\x$.txt").is_file()


def test_tokenizers_lie_by_vocabulary_and_compression(tmp_path: Path, figures: list, capsys) -> None:
    (tmp_path / "my.txt").write_text("the cat sat on the mat\n" * 200)
    for size in (270, 280):
        argv = ["tokenizer", "train", str(tmp_path / "my.txt"), "--vocab-size", str(size)]
        assert main([*argv, "--out", str(tmp_path / f"bpe{size}")]) == 0
    names = ["byte", f"{tmp_path}/bpe270/tokenizer.json", f"{tmp_path}/bpe280"]
    argv = ["tokenizer", "compare", *names, "--text", str(tmp_path / "my.txt"), "--json"]
    capsys.readouterr()
    assert main([*argv, "--plot", str(tmp_path / "a.svg")]) == 0
    said = capsys.readouterr()
    rows = json.loads(said.out)["tokenizers"]
    assert said.err.replace("\n", "") == f"drawn: {tmp_path}/a.svg"
    [axes] = figures[0].axes
    points = [[row["vocab_size"], row["bytes_per_token"]] for row in rows]
    drawn = [line.get_xydata().tolist() for line in axes.get_lines()]
    assert drawn == [points[1:], points[:1]], "the bpe points are joined, the byte point is alone"
    packed = zip(("byte", "bpe270", "bpe280"), rows, strict=True)
    assert words(axes) == [f"{name}  {row['bytes_per_token']:.2f}" for name, row in packed]
    assert main(["tokenizer", "inspect", names[2], "--plot", str(tmp_path / "b.png")]) == 0
    assert "268 bpe tokens" in figures[1].axes[0].get_title(loc="left")
    with pytest.raises(UserError, match=r"\.png or \.svg"):
        draw_tokenizers(rows, tmp_path / "a.pdf")


def test_the_name_of_a_text_is_no_formula(tmp_path: Path) -> None:
    row = {"name": "byte", "kind": "byte", "vocab_size": 259, "bytes_per_token": 1.0}
    assert draw_tokenizers([row], tmp_path / "a.svg", "$^$.txt").is_file()


def test_names_that_the_font_lacks_are_drawn_as_codes(tmp_path: Path) -> None:
    row = {"name": "ไทย", "kind": "bpe", "vocab_size": 259, "bytes_per_token": 1.0}
    curve = {"step": np.arange(3.0), "loss": np.arange(3.0)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns of each letter that its font does not have
        assert draw_tokenizers([row], tmp_path / "a.png", "红楼梦.txt").is_file()
        figure = draw_runs(["红楼梦"], [[curve]], {"loss": {}}, what=("loss",))
        assert write_figure(figure, tmp_path / "b.png").is_file()
    assert figure.get_suptitle() == "U+7EA2U+697CU+68A6"
