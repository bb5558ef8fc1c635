"""Test that an ensemble is the mean of its members' probabilities: as a model, in `eval`, and as a teacher."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import fails, json_of
from tuned_run import SHAPE, TEXT, StopAt, last_tensors, make_base, same, tune
from typed_report import check

from minigpt.cli import main
from minigpt.cli.extra_scores import ExtraScores
from minigpt.config import load_config
from minigpt.errors import RunError
from minigpt.evals import averaged
from minigpt.evals.report import REPORT_KEYS
from minigpt.files import read_lines
from minigpt.model import GPT
from minigpt.model.ensemble import Ensemble, mean_probability
from minigpt.runs import train as assembly
from minigpt.runtime.device import Runtime
from minigpt.tokenizers import CharTokenizer
from minigpt.training.finetune.distill import Distillation


def models(count: int) -> list[GPT]:
    shape = SHAPE.model_copy(update={"vocab_size": 20, "num_layers": 1})
    return [GPT(shape, seed=seed) for seed in range(count)]


def test_it_predicts_the_mean_of_the_probabilities() -> None:
    members = models(3)
    tokens = torch.arange(20).reshape(2, 10)
    mean = torch.stack([member(tokens).softmax(-1) for member in members]).mean(0)
    ensemble = Ensemble(members)
    torch.testing.assert_close(ensemble(tokens), mean.log())
    torch.testing.assert_close(ensemble(tokens).exp().sum(-1), torch.ones(2, 10))
    torch.testing.assert_close(mean_probability([members[0](tokens)]), members[0](tokens).log_softmax(-1))
    assert not ensemble.training
    assert not any(member.training for member in members)


def test_members_keep_their_modes_and_have_one_vocabulary() -> None:
    first, second, third = models(3)
    third.eval()
    averaged([second, third])(first, np.arange(20), context=8, runtime=Runtime(torch.device("cpu"), "fp32"))
    assert [each.training for each in (first, second, third)] == [True, True, False]
    other = GPT(SHAPE.model_copy(update={"vocab_size": 21, "num_layers": 1}))
    with pytest.raises(ValueError, match="another vocabulary"):
        Ensemble([first, other])


def test_several_teachers_teach_the_mean_of_their_probabilities() -> None:
    model, *teachers = models(4)
    tokens = torch.arange(20).reshape(2, 10)
    targets = tokens.roll(-1).masked_fill(tokens % 3 == 0, -100)
    ours = Distillation(teachers, 0.7, 2.0)(model, tokens, targets, valid=5)
    p = torch.stack([(teacher(tokens) / 2).softmax(-1) for teacher in teachers]).mean(0)
    q = (model(tokens) / 2).softmax(-1)
    counted = targets != -100
    kl = (p * (p / q).log()).sum(-1)[counted].sum() * 4
    nll = -model(tokens).log_softmax(-1)[counted].gather(-1, targets[counted][:, None]).sum()
    torch.testing.assert_close(ours, (0.3 * nll + 0.7 * kl) / 5)
    ours.backward()
    assert all(parameter.grad is None for teacher in teachers for parameter in teacher.parameters())


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Runs with the same tokenizer and different weights."""
    return [make_base(tmp_path / "runs" / name, seed=seed) for name, seed in (("one", 1), ("two", 2), ("three", 3))]


def report_of(capsys: pytest.CaptureFixture[str], run: Path, *flags: object) -> dict[str, Any]:
    return json_of(capsys, "eval", run, "--device", "cpu", *flags)


def test_the_command_scores_it_next_to_the_run_itself(
    three: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "more.txt"
    text.write_text(TEXT)
    report = report_of(capsys, three[0], "--data", text, "--ensemble", *three[1:])
    check(ExtraScores, {key: report[key] for key in report if key not in REPORT_KEYS})
    assert report["ensemble"]["runs"] == [str(run) for run in three]
    assert report["ensemble"]["perplexity"] == pytest.approx(math.exp(report["ensemble"]["loss"]))
    alone = [report_of(capsys, run, "--data", text)["loss"] for run in three]
    assert alone[0] == report["loss"]
    assert report["ensemble"]["loss"] < sum(alone) / 3, "Jensen's inequality"
    assert report_of(capsys, three[0], "--data", text, "--ensemble", f"{three[1]},{three[2]}") == report
    same_run = report_of(capsys, three[0], "--data", text, "--ensemble", three[0])
    assert same_run["ensemble"]["loss"] == pytest.approx(alone[0], rel=1e-6)
    capsys.readouterr()
    assert main(["eval", str(three[0]), "--device", "cpu", "--data", str(text), "--ensemble", str(three[1])]) == 0
    assert f"mean probability of {three[0]}, {three[1]}: loss" in capsys.readouterr().out
    short = make_base(tmp_path / "runs" / "short", max_seq_len=32)
    words = ["eval", str(three[0]), "--data", str(text), "--ensemble", str(short)]
    fails(capsys, words, "--ensemble", "reads 32 tokens at most; set --context 32")
    assert report_of(capsys, three[0], "--data", text, "--ensemble", short, "--context", 32)["context"] == 32
    CharTokenizer.from_texts([TEXT.replace("t", "T")]).save(short)
    fails(capsys, words, "another tokenizer")


def test_a_run_learns_from_an_ensemble_and_resumes_to_the_same_bits(three: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "more.txt"
    text.write_text(TEXT)
    settings: dict[str, Any] = {
        "finetune__teacher": f"{three[1]},{three[2]}", "finetune__teacher_weight": 1.0, "train__max_steps": 24,
        "train__eval_every": 8, "finetune__seq_len": 16,
        "optimizer__learning_rate": 5e-3, "train__batch_size": 16,
    }  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assembly, "Signals", StopAt)
        tune(three[0], text, "taught", **settings)
    run = tune(three[0], text, "taught", **settings)
    whole = tune(three[0], text, "whole", **settings)
    assert same(last_tensors(run.path), last_tensors(whole.path))
    losses = [line["loss"] for line in read_lines(whole.path / "metrics.jsonl")[1:]]
    print(f"KL to the mean of two: {losses[0]:.2f} -> {losses[-1]:.2f} nats")
    assert losses[-1] < losses[0]
    receipt = json.loads((run.path / "receipt.json").read_text())
    assert [receipt[name]["path"].split("/checkpoints")[0] for name in ("teacher", "teacher 2")] == [
        str(path) for path in three[1:]
    ]
    make_base(three[2], seed=77)
    with pytest.raises(RunError, match="teacher 2 of other weights"):
        tune(three[0], text, "taught", **settings)


def test_configs_of_one_teacher_and_of_none_are_read(tmp_path: Path) -> None:
    for written, expected in (("null", ()), ("runs/a", ("runs/a",)), ("[runs/a, 'runs/b,c']", ("runs/a", "runs/b,c"))):
        (tmp_path / "c.yaml").write_text(f"finetune:\n  teacher: {written}\n")
        assert load_config(tmp_path / "c.yaml").finetune.teacher == expected
