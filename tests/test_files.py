"""Files of lines survive odd separators and a cut inside a character."""

from pathlib import Path

import pytest

from minigpt.files import append_line, keep_lines, parse_json, read_lines


def test_lines_survive_odd_separators_and_a_cut_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "samples.jsonl"
    for step in (1, 2, 3):
        append_line(path, {"step": step, "text": "a\u2028b\u2029c\x85d\n"})
    with path.open("ab") as file:
        file.write('{"step": 4, "text": "é'.encode()[:-1])
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3]
    keep_lines(path, 2)
    assert [line["text"] for line in read_lines(path)] == ["a\u2028b\u2029c\x85d\n"] * 2


def test_json_that_is_nested_too_deeply_is_a_value_error() -> None:
    assert parse_json('{"a": [1]}') == {"a": [1]}
    for text in ("[" * 100_000, '{"a":' * 100_000, b"[" * 100_000):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse_json(text)
