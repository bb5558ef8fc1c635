"""Test that the fitted temperature gives the smallest loss, and is kept with the run under its own name."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_run import fails, json_of, small_run
from torch import nn
from typed_report import check

from minigpt.cli import main
from minigpt.cli.extra_scores import ExtraScores
from minigpt.errors import CheckpointError, DataError, UserError
from minigpt.evals import at_temperature, evaluate, fit_temperature
from minigpt.evals.report import REPORT_KEYS
from minigpt.runs.load import load_run
from minigpt.runs.score import kept_temperature
from minigpt.runtime.device import Runtime

CPU = Runtime(torch.device("cpu"), "fp32")
V = 7


class Bigram(nn.Module):
    """Predicts from the last token alone: logits are rows of a table, times a factor."""

    def __init__(self, factor: float = 1.0):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=V, max_seq_len=64)
        self.table = factor * torch.randn(V, V, generator=torch.Generator().manual_seed(0))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens]


def drawn(count: int) -> np.ndarray:
    """A text that `Bigram` writes at temperature 1, so that it knows its probabilities exactly."""
    rng, rows = np.random.default_rng(0), Bigram().table.softmax(-1).double().numpy()
    ids = [0]
    for _ in range(count):
        ids.append(int(rng.choice(V, p=rows[ids[-1]] / rows[ids[-1]].sum())))
    return np.array(ids)


@pytest.mark.parametrize("factor", [0.25, 1.0, 3.0])
def test_it_is_the_temperature_that_undoes_what_the_logits_were_multiplied_by(factor: float) -> None:
    tokens, model = drawn(3000), Bigram(factor)
    found = fit_temperature(model, tokens, context=16, runtime=CPU, batch_size=7)
    assert found == pytest.approx(factor * fit_temperature(Bigram(), tokens, context=16, runtime=CPU), rel=1e-4)
    assert found == pytest.approx(factor, rel=0.05), "the text is drawn at temperature 1"

    def loss(temperature: float) -> float:
        return at_temperature(temperature)(model, tokens, context=16, runtime=CPU).loss

    losses = {scale: loss(found * scale) for scale in (0.5, 0.9, 0.99, 1.0, 1.01, 1.1, 2.0)}
    assert min(losses, key=lambda scale: losses[scale]) == 1.0
    assert loss(1.0) == pytest.approx(evaluate(model, tokens, context=16, runtime=CPU).loss, rel=1e-7)
    assert model.training, "the model is in training mode again"
    assert at_temperature(2.0)(model.eval(), tokens, context=16, runtime=CPU).loss > 0
    assert not model.training
    assert found == fit_temperature(model, tokens, context=16, runtime=CPU, batch_size=7), "same for any batch size"


def test_a_text_that_is_known_by_heart_ends_at_the_border() -> None:
    model = Bigram()
    model.table = torch.eye(V).roll(1, 1)  # each next token is certain
    assert fit_temperature(model, np.arange(50) % V, context=8, runtime=CPU) == pytest.approx(0.1, rel=1e-3)


def test_what_cannot_be_is_said() -> None:
    text = np.arange(50) % V
    for wrong in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(UserError, match=r"temperature .* is out of range"):
            at_temperature(wrong)
    for windows in ({"context": 8, "stride": 0}, {"context": 8, "stride": 9}, {"context": 8, "batch_size": 0}):
        with pytest.raises(UserError, match="choose"):
            fit_temperature(Bigram(), text, runtime=CPU, **windows)
    with pytest.raises(DataError, match="give more text"):
        fit_temperature(Bigram(), text[:1], context=8, runtime=CPU)
    broken = Bigram()
    broken.table = torch.full((V, V), math.nan)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        fit_temperature(broken, text, context=8, runtime=CPU)


def report_of(run: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> dict[str, Any]:
    return json_of(capsys, "eval", run, "--device", "cpu", *flags)


def test_it_is_kept_and_later_figures_stand_below_the_headline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(tmp_path)
    kept = (run / "eval.json").read_bytes()
    before = report_of(run, capsys)
    assert before["at_temperature"] is None
    fitted = report_of(run, capsys, "--fit-temperature")
    check(ExtraScores, {key: fitted[key] for key in fitted if key not in REPORT_KEYS})
    assert {key: fitted[key] for key in REPORT_KEYS} == {key: before[key] for key in REPORT_KEYS}
    assert (run / "eval.json").read_bytes() == kept
    at = fitted["at_temperature"]
    assert at["loss"] < fitted["loss"]
    assert at["perplexity"] == pytest.approx(math.exp(at["loss"]))
    assert at["bits_per_byte"] / at["loss"] == pytest.approx(fitted["bits_per_byte"] / fitted["loss"])
    other = report_of(run, capsys, "--split", "train", "--context", "16")["at_temperature"]
    assert (other["temperature"], other["fitted_on"]) == (at["temperature"], "val")
    assert main(["eval", str(run), "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert (
        f"at temperature {at['temperature']:.4f}, fitted on the whole validation split: loss {at['loss']:.4f}" in shown
    )
    loaded = load_run(run / "checkpoints" / "step-00000020", "cpu")
    assert kept_temperature(run, loaded.step) is None, "the temperature is only for the fitted checkpoint"
    whole = json.loads((run / "temperature.json").read_text())
    for damaged in ({"temperature": 2}, *(whole | {"temperature": wrong} for wrong in (-1.0, 0, math.inf, math.nan))):
        (run / "temperature.json").write_text(json.dumps(damaged))
        capsys.readouterr()
        assert main(["eval", str(run), "--device", "cpu", "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out)["at_temperature"] is None
        assert "temperature.json: damaged, so left out" in " ".join(said.err.split())


def test_it_is_fitted_on_the_runs_own_validation_split_alone(capsys: pytest.CaptureFixture[str]) -> None:
    for other in (["--split", "test"], ["--data", "x.txt"]):
        fails(
            capsys,
            ["eval", "runs/none", "--fit-temperature", *other],
            "--fit-temperature",
            "leave --data and --split out",
        )
    fails(capsys, ["eval", "runs/none", "--fit-temperature", "--tasks", "x"], "not with --tasks")
    fails(capsys, ["eval", "runs/none", "--fit-temperature", "--context", "16"], "is for the model's whole context")


def test_a_fit_of_an_older_checkpoint_does_not_replace_that_of_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").touch()
    step = tmp_path / "checkpoints" / "step-00000020"
    step.mkdir(parents=True)
    fails(capsys, ["eval", str(step), "--fit-temperature"], "best checkpoint; name the run", "--fit-temperature")
