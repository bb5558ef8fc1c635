"""Test scores of records: the loss of the expected answers as training counts it, and the greedy answers."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from cli_run import json_of
from tuned_run import ANSWERS, make_base, questions, tune, write
from typed_report import check, keys, words_of_help

from minigpt import evaluate_records, load_run
from minigpt.cli import main
from minigpt.cli.answers import show
from minigpt.errors import DataError, UserError
from minigpt.evals import RECORD_KEYS
from minigpt.evals.records import RecordReport


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("made") / "runs" / "base")


@pytest.fixture(scope="module")
def learned(base: Path) -> Path:
    """A run that memorised ten answers."""
    data = questions(base.parent.parent / "q.jsonl")
    settings = {"train__max_steps": 50, "train__batch_size": 10, "optimizer__learning_rate": 8e-3}
    return tune(base, data, "learned", finetune__val_source=str(data), **settings).path


def test_the_loss_is_training_s_and_answers_learned_by_heart_are_exact(learned: Path) -> None:
    run = load_run(learned, "cpu")
    report = evaluate_records(run)
    check(RecordReport, report)
    state = json.loads((run.checkpoint / "state.json").read_text())
    assert report["loss"] == pytest.approx(state["train"]["best_loss"], rel=1e-4)
    nats, tokens = 0.0, 0
    for ask, answer in ANSWERS:
        prompt, reply = run.tokenizer.encode(f"the {ask}"), [*run.tokenizer.encode(f" {answer}"), run.tokenizer.eos_id]
        with torch.no_grad():
            logits = run.model(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1]
        nats += F.cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
        tokens += len(reply)
    assert (report["tokens"], report["records"], report["split"]) == (tokens, 10, "val")
    assert report["loss"] == pytest.approx(nats / tokens, rel=1e-4)
    assert report["exact_match"] == 1
    assert [(answer["prompt"], answer["got"]) for answer in report["answers"]] == [(f"the {a}", b) for a, b in ANSWERS]


def test_any_run_answers_other_records_from_what_stands_before(base: Path, learned: Path, tmp_path: Path) -> None:
    chats = [{"messages": [{"role": "user", "content": ask}, {"role": "assistant", "content": answer}] * 2}
             for ask, answer in ANSWERS]  # fmt: skip
    path = str(write(tmp_path / "chats.jsonl", chats))
    before = evaluate_records(load_run(base, "cpu"), source=path, split="train", ask=5)
    assert (before["records"], len(before["answers"]), before["data"]) == (7, 5, path)
    first, second = before["answers"][:2]
    assert (first["prompt"], first["expected"]) == (second["prompt"], second["expected"])
    assert (first["prompt"], first["expected"]) in ANSWERS
    assert evaluate_records(load_run(learned, "cpu"), source=path, ask=0)["exact_match"] is None
    for wrong in ({"split": "test"}, {"ask": -1}):
        with pytest.raises(UserError):
            evaluate_records(load_run(base, "cpu"), source=path, **wrong)
    with pytest.raises(DataError, match="a record has the fields"):
        evaluate_records(load_run(base, "cpu"), source=str(write(tmp_path / "x.jsonl", [{"question": "a"}])))


def test_the_command_shows_a_table_and_documents_every_key(learned: Path, tmp_path: Path, capsys) -> None:
    assert main(["eval", str(learned), "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "exact match                           100.0% (10 of 10)" in lines
    assert "✓  the fox  red       red" in lines
    report = json_of(capsys, "eval", learned, "--device", "cpu", "--ask", "3")
    assert tuple(report) == RECORD_KEYS and len(report["answers"]) == 3
    assert keys(RecordReport) <= words_of_help(["eval"], capsys)
    for flags, problem in ((["--stride", "3"], "for a text, not for records"), (["--ask", "-1"], "give 0 or more")):
        assert main(["eval", str(learned), *flags]) == 2
        assert problem in capsys.readouterr().err
    (tmp_path / "t.txt").write_text("the cat sat on a mat " * 50)
    assert main(["eval", str(learned), "--data", str(tmp_path / "t.txt"), "--ask", "3"]) == 2
    assert "--ask is for records" in capsys.readouterr().err


def test_the_table_keeps_to_the_screen_and_shows_wrong_answers_first(capsys) -> None:
    long = "Sam was a shy fox.\n" * 9 + "What does Sam want?"
    answers = [{"prompt": long, "expected": "figs " * n, "got": "你好" * n, "exact": n == 1} for n in range(1, 20)]
    show({"loss": 1.0, "answers": answers, "records": 30, "step": 7, "split": "val", "data": "d"}, "runs/my", 80)
    text = capsys.readouterr().out
    table = text.splitlines()[5:16]
    assert len(table) == 11 and all(line == line.rstrip() for line in text.splitlines())
    assert all(len(line) + sum(ord(char) > 0x3000 for char in line) <= 80 for line in table)
    assert "✓" not in text and "What does Sam want?" in table[1] and table[1].startswith("✗  …")
    assert "10 of 19 answers, wrong ones first" in text
