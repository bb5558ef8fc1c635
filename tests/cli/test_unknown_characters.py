"""Test characters that a given tokenizer does not know: named at the start and next to the figures, or refused."""

from pathlib import Path

import pytest
from cli_run import SMALL, fails, text

from minigpt.cli import main

FEW, MANY = text(400) + "Žluťoučký {kůň}\n", "Привет мир, это текст: the cat\n" * 200
LOOKS = "so bits per byte looks better than it is"


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "few.txt").write_text(FEW)
    (tmp_path / "many {x} [b].txt").write_text(MANY)
    return str(tmp_path / "few.txt"), str(tmp_path / "many {x} [b].txt")


def runs(tmp_path: Path) -> list[str]:
    return ["--train.max-steps", "1", "--logging.plots", "false", "--logging.runs-dir", str(tmp_path / "runs")]


def test_few_are_told_before_and_after_training(trained: Path, tmp_path: Path, files, capsys) -> None:
    few, _ = files
    given = ["--tokenizer.path", str(trained / "tokenizer.json")]
    for argv in (["finetune", str(trained), few], ["train", few, *SMALL, *given, "--name", "given"]):
        capsys.readouterr()
        assert main([*argv, *runs(tmp_path)]) == 0
        said = capsys.readouterr().err
        told = "few.txt: 12 of 1,460 validation tokens (0.82 %) are characters that the tokenizer does not know: Ž u"
        assert said.count(told) == said.count(LOOKS) == 2, said
        assert said.rindex(told) > said.rindex("finished: 1")
    assert main(["eval", str(trained), "--data", few]) == 0
    assert capsys.readouterr().err.count(told) == 1


def test_many_are_refused_with_the_fix(trained: Path, tmp_path: Path, files, capsys) -> None:
    _, many = files
    parts = (many, " %) are characters that the tokenizer does not know: П р и в е т", "byte, bpe or gpt2")
    fails(capsys, ["finetune", str(trained), many, *runs(tmp_path)], "training tokens", *parts)
    fails(capsys, ["eval", str(trained), "--data", many], "validation tokens", *parts)
    given = ["--tokenizer.path", str(trained / "tokenizer.json"), *SMALL]
    fails(capsys, ["train", many, *given, *runs(tmp_path)], "training tokens", *parts)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("field", ["prompt", "completion"])
def test_records_are_counted_alike(trained: Path, tmp_path: Path, capsys, field: str) -> None:
    row = '{"prompt": "the cat %d ", "completion": "sat on a mat"}\n'.replace("%d", "{0}")
    plain = "".join(row.replace("{0}", "the dog " * (n % 9)) for n in range(40))
    (tmp_path / "x.jsonl").write_text(plain + '{"prompt": "a", "completion": "b"}\n'.replace("a", "é{}"))
    assert main(["finetune", str(trained), str(tmp_path / "x.jsonl"), *runs(tmp_path)]) == 0
    said = capsys.readouterr().err
    assert said.count("are characters that the tokenizer does not know: é { }; the model reads them all as one") == 1
    assert "never saw" not in said, "unknown characters are named once, also if the sample prompt has some"
    strange = '{"prompt": "the cat ", "completion": "sat on a mat"}\n{"prompt": "the dog", "completion": "ran"}\n'
    (tmp_path / "y.jsonl").write_text(strange.replace(f'{field}": "', f'{field}": "{"你好" * 20}'))
    fails(capsys, ["finetune", str(trained), str(tmp_path / "y.jsonl"), *runs(tmp_path)], "你 好", "byte, bpe or gpt2")
