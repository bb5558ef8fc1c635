"""Test the headline of a run: one figure, in the same words, wherever it is shown."""

import json
from pathlib import Path

import pytest
from cli_run import SMALL, text

from minigpt.cli import main
from minigpt.console import scored_on
from minigpt.runs import score
from minigpt.runs.score import kept_score

HOW = ["--train.sample-every", "0", "--optimizer.learning-rate", "1e-2", "--train.max-steps"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cats.txt").write_text(text(100))
    return tmp_path


def lines_of(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    capsys.readouterr()
    assert main(list(argv)) == 0
    said = capsys.readouterr()
    return [line for line in (said.err + said.out).splitlines() if "bits per byte (" in line]


def test_training_and_eval_and_explain_say_the_same_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--train.eval-batches", "1"]
    (line,) = lines_of(capsys, "train", "cats.txt", *SMALL, *few, *HOW, "30")
    saved = json.loads((folder / "runs/cats/eval.json").read_text())
    figure = f"{saved['bits_per_byte']:.3f} bits per byte (whole validation split, no overlap; step {saved['step']})"
    assert line == f"{figure}; a 5-gram model {saved['floors']['five_gram']:.3f}"
    assert lines_of(capsys, "eval", "runs/cats") == [line]
    assert lines_of(capsys, "explain", "runs/cats", "--prompt", "the cat") == [figure]
    assert figure in (folder / "runs/cats/plots/explain.html").read_text()
    assert lines_of(capsys, "train", "cats.txt", *SMALL, *few, *HOW, "30") == [line], "nothing left to do"
    main(["eval", "runs/cats", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert {key: printed.pop(key) for key in saved} == saved
    assert set(printed.values()) == {None}, "other scores are only computed if asked for"


def test_a_run_too_short_for_its_validation_split_names_its_batches(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["train", "cats.txt", *SMALL, "--train.eval-batches", "1", *HOW, "2"]
    (line,) = lines_of(capsys, *argv)
    last = json.loads((folder / "runs/cats/metrics.jsonl").read_text().splitlines()[-1])
    said = f"{last['bits_per_byte']:.3f} bits per byte (at most 1 batch of the validation split, no overlap; step 2)"
    assert line == said and not (folder / "runs/cats/eval.json").exists()


def test_a_kept_score_is_that_of_the_checkpoint_and_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines_of(capsys, "train", "cats.txt", *SMALL, *HOW, "30")
    file = folder / "runs/cats/eval.json"
    report = json.loads(file.read_text())
    assert kept_score(folder / "runs/cats", report["step"]) == report
    assert kept_score(folder / "runs/cats", 7) is None
    for damaged in ("{", "[]", "{}", json.dumps(report | {"stride": 3}), json.dumps({**report, "more": 1})):
        file.write_text(damaged)
        assert kept_score(folder / "runs/cats", report["step"]) is None
    lines_of(capsys, "train", "cats.txt", *SMALL, *HOW, "30")
    assert json.loads(file.read_text()) == report, "the score is measured again, with the same result"


def test_a_memory_too_small_for_the_score_harms_no_run(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(score, "evaluate_run", full)
    assert main(["train", "cats.txt", *SMALL, *HOW, "30"]) == 0
    said = capsys.readouterr()
    assert "since memory is too small; later: minigpt eval runs/cats --save" in said.err
    assert "bits per byte (whole validation split, no overlap; step" in said.err, "training measured them"


def test_the_words_next_to_a_loss() -> None:
    assert scored_on("val") == "whole validation split, no overlap"
    assert scored_on("val", 20) == "at most 20 batches of the validation split, no overlap"
    assert scored_on("test", stride=1024) == "whole test split, stride 1,024"
