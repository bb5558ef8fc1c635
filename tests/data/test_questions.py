"""Test that questions about openings of stories have an answer, never repeat, and are the same for the same seed."""

import json
from itertools import islice
from pathlib import Path

from cli_run import fails

from minigpt.cli import main
from minigpt.data.stories.generator import generate_stories
from minigpt.data.stories.questions import questions
from minigpt.tokenizers.chat_template import Template


def pairs(count: int, seed: int = 0) -> list[tuple[str, str]]:
    return [(chat["messages"][0]["content"], chat["messages"][1]["content"]) for chat in questions(count, seed)]


def test_the_answer_is_in_the_sentence_and_there_are_several_kinds() -> None:
    asked = pairs(2000)
    for text, answer in asked:
        sentence, ask = text[: text.index(".") + 1], text[text.index(".") + 2 :]
        assert ask.endswith("?")
        assert answer.lower() in sentence.lower()
    assert len({text[text.index(".") + 2 :].split()[0] for text, _ in asked}) == 4
    assert len({answer for _, answer in asked}) > 50


def test_none_comes_twice_and_a_seed_repeats_itself() -> None:
    asked = pairs(3000)
    assert len(set(asked)) == 3000
    assert pairs(50) == asked[:50]
    assert len(set(pairs(500, seed=1)) & set(asked)) < 25


def test_the_stories_hold_every_character_of_the_questions_and_digits() -> None:
    known = set("".join(generate_stories(1500, seed=1)))
    template = Template()
    spelled = "".join(piece.text for chat in questions(1000) for piece in template.pieces(chat["messages"]))
    assert set(spelled + template.system + "0123456789") - known <= {"{", "}"}


def test_the_command_writes_json_lines_and_overwrites_nothing(tmp_path: Path, capsys) -> None:
    out = tmp_path / "questions.jsonl"
    assert main(["data", "questions", "--count", "20", "--seed", "3", "--out", str(out)]) == 0
    assert [json.loads(line) for line in out.read_text().splitlines()] == list(islice(questions(20, 3), 20))
    assert capsys.readouterr().out == f"{out}\n"
    assert main(["data", "questions", "--count", "20", "--seed", "3"]) == 0
    assert capsys.readouterr().out == out.read_text()
    fails(capsys, ["data", "questions", "--out", str(out)], "exists; choose another --out")
    fails(capsys, ["data", "questions", "--count", "0"], "--count 1 to 100000")
