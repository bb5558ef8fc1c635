"""Test that JSON is recognised by its content as well as by its name, so that no braces are learned as text."""

import gzip
import json
from pathlib import Path

import pytest

from minigpt.config import DataConfig
from minigpt.data import open_corpus
from minigpt.data.json_rows import form_of, json_form, json_rows
from minigpt.data.text_files import decoded
from minigpt.errors import DataError

ROWS = [{"text": f"é {n}: [{n}]", "id": {"n": n}} for n in range(40)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
SPELLED = {
    "lines": LINES,
    "lines with \\r\\n, a mark and blank lines": "\ufeff\n" + LINES.replace("\n", "\r\n\n"),
    "a list": json.dumps(ROWS),
    "a list over lines": json.dumps(ROWS, indent=4),
    "a list, one row per line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "a list that begins with a row": "[" + ",\n".join(map(json.dumps, ROWS)) + "]",
    "objects over lines": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "texts": json.dumps([row["text"] for row in ROWS]),
    "texts over lines": json.dumps([row["text"] for row in ROWS], indent=2),
}


def documents(path: Path, **fields: str) -> list[str]:
    corpus = open_corpus(DataConfig(source=str(path), **fields))
    texts = [""]
    for piece in corpus.pieces():
        texts[-1] += piece.text
        texts += [""] * piece.ends
    return texts[:-1]


@pytest.mark.parametrize("name", ["x.jsonl", "X.JSONL", "x.NdJson", "x.json", "x.txt", "x", "x.Json.gz"])
@pytest.mark.parametrize("spelled", SPELLED)
def test_every_spelling_under_every_name_is_the_same_documents(tmp_path: Path, name: str, spelled: str) -> None:
    data = SPELLED[spelled].encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    assert documents(tmp_path / name) == [row["text"] for row in ROWS]


@pytest.mark.parametrize(
    "text",
    [
        "[1] Introduction\n[2] Methods\n",
        "[Verse 1]\nOh my\n",
        "[[link]] and [another]\n",
        '["Hello," she said.]\n',
        '"Hello", she said.\n',
        "{ int x; }\n",
        "{color: red}\n",
        '{"a" plus "b"}\n',
        "{{template}}\n",
        "[section]\nkey = 1\n",
        "5\n6\n",
        "",
    ],
)
def test_a_text_with_brackets_stays_a_text(tmp_path: Path, text: str) -> None:
    assert form_of("x.txt", text) is None
    assert form_of("x.txt", text + "\nmore words\n" * 50) is None
    (tmp_path / "x.txt").write_text(text + "\nmore words\n" * 50)
    assert "".join(documents(tmp_path / "x.txt")) == text + "\nmore words\n" * 50


@pytest.mark.parametrize(
    ("name", "text", "parts"),
    [
        ("x.txt", '{"a": 1}\n{"a": 2}\n', ("line 1", "no field 'text', but a", "--data.text-field")),
        ("x.txt", '{"a": 1,\n "b": [2]}\n', ("item 1", "no field 'text', but a, b", "--data.text-field")),
        ("x.json", '{"data": [{"text": "a"}]}', ("line 1", "no field 'text', but data")),
        ("x.txt", '{"text": "cut\n{"text": "b"}\n', ("line 1", "is not JSON", "one object per line")),
        ("x.json", '[{"text": "a"}, {"text": "b"', ("item 2", "is not JSON", "one object per line")),
        ("x.json", '[{"text": "a"}', ("the list has no end",)),
        ("x.json", '[{"text": "a"} {"text": "b"}]', ("no comma",)),
        ("x.json", '[{"text": "a"}] {"text": "b"}', ("more after the list",)),
        ("x.json", "[1, 2]", ("item 1", "not an object, but int")),
        ("x.json", "some words, not JSON\n" * 9, ("item 1", "is not JSON")),
        ("x.json", "[" * 100_000, ("nested too deeply",)),
        ("x.jsonl", '{"text": ' + "[" * 100_000, ("nested too deeply",)),
        ("x.txt", '{"text": ' + '{"a":' * 100_000, ("nested too deeply",)),
    ],
)
def test_what_cannot_be_read_is_one_line_with_the_fix(tmp_path: Path, name: str, text: str, parts: tuple[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as error:
        documents(tmp_path / name)
    assert "\n" not in str(error.value)
    for part in (name, *parts):
        assert part in str(error.value)


def test_a_long_list_is_read_in_a_stream(tmp_path: Path) -> None:
    rows = [{"text": "x" * (n % 5000)} for n in range(3000)]  # 7 MB, blocks of 1 MB
    (tmp_path / "x.json").write_text(json.dumps(rows, indent=1))
    assert [row for _, row in json_rows(decoded(tmp_path / "x.json", "utf-8", "x"), "values", "x")] == rows


def test_a_folder_takes_json_that_holds_texts_and_names_the_rest(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("words\n" * 30)
    (tmp_path / "b.json").write_text(json.dumps([{"text": "in a list"}]))
    (tmp_path / "package.json").write_text(json.dumps({"name": "x", "version": "1"}, indent=2))
    with pytest.warns(UserWarning, match=r"left out: .*package.json \(JSON: item 1: has no field 'text', but name"):
        assert sorted(documents(tmp_path)) == ["in a list", "words\n" * 30]


def test_an_error_names_only_the_first_of_many_fields(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(json.dumps({f"{n}" * 60: "a text" for n in range(9)}))
    with pytest.raises(DataError, match=r"no field 'text', but 0{40}, 1{40}, 2{40}, 3{40}, 4{40} and 4 more; rename"):
        documents(tmp_path / "x.json")


def test_the_form_belongs_to_the_key_of_the_cache(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(LINES)
    (tmp_path / "y.txt").write_text("words\n" * 9)
    entries = [open_corpus(DataConfig(source=str(tmp_path / name))).source.identity[1] for name in ("x.txt", "y.txt")]
    assert [entry[3:] for (entry,) in entries] == [["lines"], []]
    assert json_form(tmp_path / "x.txt") == "lines"
