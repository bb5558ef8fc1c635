"""Test the figures of `minigpt data inspect` against plain counting, and the output of the command."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
from cli_run import json_of
from split_text import jsonl
from typed_report import check, words_of_help

from minigpt.cli import main
from minigpt.config import DataConfig
from minigpt.data import corpus
from minigpt.data.inspect.report import TextReport, inspect_data
from minigpt.tokenizers import ByteTokenizer


def words(*numbers: int) -> str:
    return " ".join(f"word{n}" for n in numbers)


TEXT = "It was été, été.\n\nIt was\nwinter: 日本\n" * 40


@pytest.fixture
def text(tmp_path: Path) -> DataConfig:
    (tmp_path / "my.txt").write_text(TEXT, encoding="utf-8")
    return DataConfig(source=str(tmp_path / "my.txt"))


def test_characters_lines_and_sizes_are_those_of_plain_counting(text: DataConfig) -> None:
    report = inspect_data(text, ByteTokenizer())
    counts = Counter(TEXT)
    assert dict(map(tuple, report["characters"]["top"])) == {char: counts[char] for char in counts}
    assert report["characters"]["distinct"] == len(counts)
    assert report["characters"]["non_ascii"] == sum(not char.isascii() for char in TEXT)
    cut = int(0.9 * len(TEXT))
    for split, part in (("train", TEXT[:cut]), ("val", TEXT[cut:])):
        figures = report["splits"][split]
        assert (figures["chars"], figures["bytes"]) == (len(part), len(part.encode()))
        assert figures["tokens"] == len(part.encode())
        assert figures["lines"] == len(part.removesuffix("\n").split("\n"))
    lengths = report["line_length"]
    found = [len(line) for part in (TEXT[:cut], TEXT[cut:]) for line in part.removesuffix("\n").split("\n")]
    assert (sum(lengths["counts"]), lengths["longest"]) == (len(found), max(found))
    assert lengths["mean"] == pytest.approx(sum(found) / len(found))
    for low, high, count in zip(lengths["edges"], lengths["edges"][1:], lengths["counts"], strict=False):
        assert count == sum(low <= length < high for length in found)
    assert len(lengths["edges"]) == len(lengths["counts"]) + 1


def test_tokens_are_counted_and_estimated_beyond_the_limit(text: DataConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = inspect_data(text, ByteTokenizer())["tokens"]
    counts = Counter(TEXT.encode())
    assert tokens["top"][0] == [" ", 32, counts[32]]
    assert tokens["used"] == len(counts)
    assert (tokens["bytes_per_token"], tokens["sampled"]) == (1.0, False)
    monkeypatch.setattr("minigpt.data.inspect.report.TOKEN_CHARS", 1)
    report = inspect_data(text, ByteTokenizer())
    assert report["tokens"]["sampled"]
    assert report["splits"]["val"]["tokens"] == report["splits"]["val"]["bytes"]
    assert inspect_data(text)["tokens"] is None


def test_repeated_lines_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "my.jsonl", ["a\nb\n\n a \n", "b\nc", "d\na"])
    duplicates = inspect_data(config)["duplicates"]
    assert duplicates == {
        "lines": 7, "repeated": 3, "share": 3 / 7, "sampled": False, "top": [["a", 3], ["b", 2]]
    }  # fmt: skip
    monkeypatch.setattr("minigpt.data.inspect.report.MAX_LINES", 2)
    assert inspect_data(config)["duplicates"]["sampled"]


def splits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train: str, val: str) -> DataConfig:
    """A corpus with these two documents as its splits."""
    monkeypatch.setattr(corpus, "_choose_few", lambda sizes, fraction: {min(sizes, key=lambda number: sizes[number])})
    assert len(val) < len(train)
    return jsonl(tmp_path / "my.jsonl", [train, val])


def test_runs_of_13_words_that_training_holds_too_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    train = words(*range(100), *range(500, 520), *range(200, 300))
    val = words(*range(500, 520), *range(900, 920))  # 28 runs; 20 - 12 = 8 of them are in training too
    overlap = inspect_data(splits(monkeypatch, tmp_path, train, val))["overlap"]
    assert overlap == {"unit": "13 words", "grams": 28, "seen": 8, "share": 8 / 28, "sampled": False}


def test_runs_of_50_characters_count_where_words_have_no_spaces(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def sentence(start: int, length: int) -> str:
        return "".join(chr(0x4E00 + n) for n in range(start, start + length))

    train, val = sentence(0, 400), sentence(300, 200)  # 151 runs; 51 of them are also at training's end
    overlap = inspect_data(splits(monkeypatch, tmp_path, train, val))["overlap"]
    assert overlap == {"unit": "50 characters", "grams": 151, "seen": 51, "share": 51 / 151, "sampled": False}


def test_runs_across_documents_do_not_count(tmp_path: Path) -> None:
    config = jsonl(tmp_path / "my.jsonl", [words(*range(n, n + 7)) for n in range(30)])
    assert inspect_data(config)["overlap"]["share"] is None


def test_the_overlap_of_a_large_text_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = jsonl(tmp_path / "my.jsonl", [words(*range(n, n + 20)) for n in range(30)])
    monkeypatch.setattr("minigpt.data.inspect.report.TRAIN_CHARS", 100)
    assert inspect_data(config)["overlap"]["sampled"]


def test_examples_are_excerpts(text: DataConfig) -> None:
    report = inspect_data(text)
    assert report["examples"] == inspect_data(text)["examples"]
    assert report["examples"]
    assert all(example in TEXT for example in report["examples"])


def test_wikitext_validation_is_almost_free_of_training_text(mirror: Path) -> None:
    overlap = inspect_data(DataConfig(source="wikitext-2"))["overlap"]
    assert overlap["grams"] > 200_000
    assert 0 < overlap["share"] < 0.01


def test_the_command_prints_its_keys_and_draws(text: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = tmp_path / "deep" / "x.png"
    report = json_of(capsys, "data", "inspect", text.source, "--plot", picture)
    check(TextReport, report)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_help_of_the_command_names_every_key(capsys: pytest.CaptureFixture) -> None:
    assert set(TextReport.__annotations__) <= words_of_help(["data"], capsys)


def test_every_figure_of_the_report_has_its_type(text: DataConfig) -> None:
    check(TextReport, inspect_data(text, ByteTokenizer()))
    check(TextReport, inspect_data(text))


def test_the_command_prints_text_for_people(text: DataConfig, capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "inspect", text.source, "--tokenizer.kind", "byte"]) == 0
    printed = capsys.readouterr().out
    for part in ("train", "val", "line length", "repeated lines", "examples", "█"):
        assert part in printed


def test_parts_of_a_character_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "my.txt").write_text("你好\n" * 90)
    report = inspect_data(DataConfig(source=str(tmp_path / "my.txt")), ByteTokenizer())
    assert {text for text, *_ in report["tokens"]["top"]} == {"<e4>", "<bd>", "<a0>", "<e5>", "<a5>", "\n"}
    assert main(["data", "inspect", str(tmp_path / "my.txt"), "--tokenizer.kind", "byte"]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if line.endswith("█")]
    assert "    你           90 " + "█" * 40 in rows and "  '\\n'           90 " + "█" * 40 in rows


def test_without_matplotlib_the_extra_is_named_before_any_work(
    text: DataConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["data", "inspect", text.source, "--plot", "x.png"]) == 2
    assert "pip install 'minigpt[plot]'" in capsys.readouterr().err


def test_prepare_prints_what_meta_json_says(text: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out"
    report = json_of(capsys, "prepare", text.source, "--tokenizer.kind", "byte", "--out", out)
    assert report == {"directory": str(out), **json.loads((out / "meta.json").read_text())}
    assert {"version", "key", "source", "splits", "tokenizer", "eos", "skipped"} <= set(report)
    assert set(report["splits"]["train"]) == {"tokens", "bytes", "chars", "words", "documents", "sha256"}
    assert main(["prepare", text.source, "--tokenizer.kind", "byte"]) == 0
    assert Path(capsys.readouterr().out.strip()).is_dir()


@pytest.mark.parametrize("command", [["prepare"], ["data", "inspect"]])
def test_a_mistake_is_one_line_and_exit_code_2(command: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main([*command, "no-such-file.txt"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no-such-file.txt" in captured.err
