"""Test prompts that are not text, missing, or endless: they are read, or refused in one line; no file is left."""

import io
import json
import os
import sys
from pathlib import Path

import pytest
from cli_run import fails

from minigpt import files
from minigpt.cli import main


@pytest.fixture
def run(trained: Path) -> str:
    return str(trained)


def pipe(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def written(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    capsys.readouterr()
    assert main([*argv, "--max-new-tokens", "3"]) == 0
    return capsys.readouterr().out


def test_a_prompt_that_is_not_utf8(run: str, tmp_path: Path, capsys, monkeypatch) -> None:
    for typed in ("caf\udce9", "\ud83d half", "\udcff\udcfe"):  # as Python decodes such bytes on the command line
        for command in ("generate", "explain"):
            fails(capsys, [command, run, "--prompt", typed], "the prompt is not UTF-8", "--prompt - < FILE")
    (tmp_path / "x.txt").write_bytes(b"caf\xe9")
    fails(capsys, ["generate", run, "--prompt-file", str(tmp_path / "x.txt")], "x.txt: cannot be read", "UTF-8")
    fails(capsys, ["generate", run, "--prompts", str(tmp_path / "x.txt")], "x.txt: cannot be read", "UTF-8")
    for command in ("generate", "explain"):
        pipe(monkeypatch, b"the \xff cat")
        fails(capsys, [command, run, "--prompt", "-"], "standard input", "UTF-8")


def test_half_a_pair_in_json_is_shown_as_a_replacement_character(run: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "x.jsonl").write_text('{"prompt": "the \\ud83d cat", "note": "\\udfff"}\n')
    line = json.loads(written(capsys, "generate", run, "--prompts", str(tmp_path / "x.jsonl")))
    assert (line["prompt"], line["note"]) == ("the \ufffd cat", "\ufffd")


def test_a_mark_at_the_beginning_is_not_part_of_the_prompt(run: str, tmp_path: Path, capsys, monkeypatch) -> None:
    plain = written(capsys, "generate", run, "--prompt", "the cat")
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfthe cat")
    assert written(capsys, "generate", run, "--prompt-file", str(tmp_path / "x.txt")) == plain
    pipe(monkeypatch, b"\xef\xbb\xbfthe cat")
    assert written(capsys, "generate", run, "--prompt", "-") == plain
    line = json.loads(written(capsys, "generate", run, "--prompts", str(tmp_path / "x.txt")))
    assert line["prompt"] == "the cat"


@pytest.mark.parametrize("name", ["x.ndjson", "X.JSONL", "x.txt", "x.json"])
def test_prompts_in_json_are_read_by_content(run: str, tmp_path: Path, capsys, name: str) -> None:
    file, rows = tmp_path / name, [{"prompt": "the cat", "id": 1}, {"prompt": "the dog", "id": 2}]
    for text in ("".join(json.dumps(row) + "\n" for row in rows), json.dumps(rows), json.dumps(rows, indent=1)):
        file.write_text(text)
        lines = [json.loads(line) for line in written(capsys, "generate", run, "--prompts", str(file)).splitlines()]
        assert [{key: line[key] for key in ("prompt", "id")} for line in lines] == rows
        fails(capsys, ["generate", run, "--prompt-file", str(file)], "holds JSON", "--prompts", f"--prompt - < {file}")
    file.write_text('["the cat", "the dog"]')
    lines = [json.loads(line) for line in written(capsys, "generate", run, "--prompts", str(file)).splitlines()]
    assert [line["prompt"] for line in lines] == ["the cat", "the dog"]


@pytest.mark.parametrize("flag", ["--prompt-file", "--prompts"])
def test_a_path_that_the_system_refuses(run: str, tmp_path: Path, capsys, flag: str) -> None:
    for path, why in {
        "x" * 300: "File name too long",
        str(tmp_path): "Is a directory",
        f"{__file__}/a.txt": "Not a directory",
        "/dev/zero": "more than",
    }.items():
        fails(capsys, ["generate", run, flag, path], "cannot be read", why)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(run: str, tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(files, "WAIT", 0.1)
    os.mkfifo(tmp_path / "pipe")
    for flag in ("--prompt-file", "--prompts"):
        fails(capsys, ["generate", run, flag, str(tmp_path / "pipe")], "nobody wrote to this pipe")


def test_endless_standard_input_is_bounded(run: str, capsys, monkeypatch) -> None:
    monkeypatch.setattr("minigpt.generation.text.prompts.MOST", 1 << 20)
    with open("/dev/zero") as endless:  # noqa: PTH123  a file that has no end
        monkeypatch.setattr(sys, "stdin", endless)
        fails(capsys, ["generate", run, "--prompt", "-"], "standard input", "more than 1 MB")


def test_answers_are_written_whole_or_not_at_all(run: str, tmp_path: Path, capsys) -> None:
    (tmp_path / "in.txt").write_text("the cat\nthe dog\n")
    argv = ["generate", run, "--prompts", str(tmp_path / "in.txt"), "--out", str(tmp_path / "out.jsonl")]
    fails(capsys, [*argv, "--min-new-tokens", "9", "--logit-bias", "x", "1e39"])
    fails(capsys, [*argv, "--batch-size", "0"], "--batch-size 0")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.txt"]
    assert written(capsys, *argv) == ""
    assert len((tmp_path / "out.jsonl").read_text().splitlines()) == 2
    assert len(list(tmp_path.iterdir())) == 2
    for out in (tmp_path / ("x" * 300), Path(__file__) / "out.jsonl"):
        fails(capsys, [*argv[:-1], str(out)], "cannot be written", "--out")


def test_a_spelled_end_of_text_in_a_prompt_is_told(run: str, capsys) -> None:
    assert main(["generate", run, "--prompt", "the<|endoftext|>", "--max-new-tokens", "2"]) == 0
    assert "<|endoftext|> in a prompt is read as 13 characters" in capsys.readouterr().err
