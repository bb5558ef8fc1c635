"""Test dynamic evaluation and the neural cache: text is scored before it is learned, and the run does not change."""

import copy
import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cli_run import fails, json_of, small_run
from typed_report import check

from minigpt.cli import main
from minigpt.cli.extra_scores import ExtraScores
from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, UserError
from minigpt.evals import REPORT_KEYS, Adaptation, adapted, evaluate
from minigpt.evals.adapt import LABEL, Method
from minigpt.model import GPT
from minigpt.runtime.device import Runtime

CPU = Runtime(torch.device("cpu"), "fp32")
SHAPE = ModelConfig(vocab_size=11, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=16, dropout=0.3)
METHODS: tuple[Method, ...] = ("dynamic", "cache", "both")
WINDOWS: dict[str, Any] = {"context": 8, "runtime": CPU}


def some(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(11, size=count)


@pytest.mark.parametrize("method", METHODS)
def test_a_text_that_repeats_gets_cheaper_and_the_first_window_costs_what_it_did(method: Method) -> None:
    model, tokens = GPT(SHAPE).train(), np.tile(some(16), 12)
    before = copy.deepcopy(model.state_dict())
    plain = evaluate(model, tokens, **WINDOWS)
    score = adapted(Adaptation(method, rate=1e-2))(model, tokens, **WINDOWS)
    assert score.tokens.tolist() == plain.tokens.tolist()
    assert score.nats[0] == pytest.approx(plain.nats[0], rel=1e-6)
    rounds = [score.nats[start : start + 2].sum() for start in range(0, 22, 2)]
    print(f"{method}: {rounds[0]:.2f} nats for the first round, {rounds[-1]:.2f} for the last")
    assert rounds[-1] < 0.9 * rounds[0]
    assert score.loss < plain.loss
    assert model.training, "the model is in training mode again"
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("stride", [8, 3])
def test_no_token_is_learned_from_before_it_is_scored(method: Method, stride: int) -> None:
    model, tokens = GPT(SHAPE), some(60)
    other = tokens.copy()
    other[33:] = some(27, seed=1)
    how = adapted(Adaptation(method, rate=1e-2))
    scores = [how(model, text, **WINDOWS, stride=stride, token_lengths=np.arange(11)) for text in (tokens, other)]
    scored = np.cumsum(scores[0].tokens)
    assert scored[-1] == 59
    assert scores[0].bytes.sum() == tokens[1:].sum()
    same = scored <= 32  # windows that end before token 33
    assert same.sum() >= 4
    assert (scores[0].nats[same] == scores[1].nats[same]).all()
    assert (scores[0].nats[~same] != scores[1].nats[~same]).all()


def test_dynamic_evaluation_is_its_definition() -> None:
    model, tokens, rate = GPT(SHAPE).eval(), torch.tensor(some(33)), 0.02
    learner, squares, expected = copy.deepcopy(model), {}, []
    for step in range(1, 5):
        window = tokens[8 * (step - 1) : 8 * step + 1]
        loss = F.cross_entropy(learner(window[None, :-1])[0], window[1:])
        expected.append(8 * loss.item())
        learner.zero_grad()
        loss.backward()
        for name, parameter in learner.named_parameters():
            squares.setdefault(name, []).append(parameter.grad.square().mean().item())
            scale = math.sqrt(sum(squares[name]) / step)
            parameter.data -= rate * parameter.grad / scale
    score = adapted(Adaptation("dynamic", rate=rate))(model, tokens.numpy(), **WINDOWS)
    assert score.nats.tolist() == pytest.approx(expected, rel=1e-4)


def test_the_cache_is_its_definition() -> None:
    model, tokens = GPT(SHAPE).eval(), torch.tensor(some(33))
    how = Adaptation("cache", cache_tokens=12, cache_share=0.3, cache_sharpness=5.0)
    held: list[tuple[torch.Tensor, int]] = []
    expected = []
    for start in range(0, 32, 8):
        window, nats = tokens[start : start + 9], 0.0
        with torch.no_grad():
            hidden = model.hidden(window[None, :-1])[0]
            p = model(window[None, :-1])[0].softmax(-1)
        for place in range(8):
            wanted, share = int(window[place + 1]), 0.0
            if held:
                like = [math.exp(5.0 * F.cosine_similarity(hidden[place], state, dim=0).item()) for state, _ in held]
                share = sum(w for w, (_, token) in zip(like, held, strict=True) if token == wanted) / sum(like)
            mixed = 0.7 * p[place, wanted].item() + 0.3 * share if held else p[place, wanted].item()
            nats -= math.log(mixed)
        held = [*held, *((hidden[place], int(window[place + 1])) for place in range(8))][-12:]
        expected.append(nats)
    score = adapted(how)(model, tokens.numpy(), **WINDOWS)
    assert score.nats.tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.1])
def test_what_the_model_thinks_impossible_has_a_finite_loss(share: float) -> None:
    class Sure(GPT):
        """Puts 500 nats between the token 0 and all others."""

        def initialise(self, seed: int) -> None:
            super().initialise(seed)
            self.head.register_forward_hook(lambda head, given, out: F.pad(out[..., 1:], (1, 0), value=500.0))

    tokens = some(60)
    plain = evaluate(Sure(SHAPE), tokens, **WINDOWS)
    score = adapted(Adaptation("cache", cache_share=share))(Sure(SHAPE), tokens, **WINDOWS)
    assert plain.nats.max() > 500 * 6
    if share:
        assert score.loss < plain.loss
    else:
        assert score.nats == pytest.approx(plain.nats, rel=1e-6)


def test_what_cannot_be_is_said() -> None:
    too_far = ({"rate": math.inf}, {"cache_tokens": 10**20}, {"cache_sharpness": 1e300})
    too_low = ({"rate": 0.0}, {"cache_tokens": 0}, {"cache_share": 1.0}, {"cache_sharpness": -1.0})
    for wrong in (*too_low, *too_far, {"rate": math.nan}, {"method": "dynamics"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} .* is out of range"):
            Adaptation(**wrong)
    with pytest.raises(UserError, match="choose a smaller --adapt-rate"):
        adapted(Adaptation("dynamic", rate=1e9))(GPT(SHAPE), some(60), **WINDOWS)
    broken = GPT(SHAPE)
    broken.norm.weight.data[0] = math.nan
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        adapted(Adaptation("dynamic"))(broken, some(60), **WINDOWS)


def hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a run."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_command_says_that_it_is_another_category_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = small_run(tmp_path)
    before = hashes(run)
    words = ["eval", str(run), "--device", "cpu"]
    plain = json_of(capsys, *words)
    assert plain["adapted"] is None
    report = json_of(capsys, *words, "--adapt", "both", "--adapt-rate", "2e-3", "--cache-tokens", "500")
    check(ExtraScores, {key: report[key] for key in report if key not in REPORT_KEYS})
    assert {key: report[key] for key in REPORT_KEYS} == {key: plain[key] for key in REPORT_KEYS}
    found = report["adapted"]
    assert found["category"] == LABEL == "adapted to the text it is scored on: not comparable with other scores"
    assert (found["method"], found["rate"], found["cache_tokens"]) == ("both", 2e-3, 500)
    assert found["loss"] != report["loss"]
    assert main([*words, "--adapt", "cache", "--save"]) == 0
    shown = capsys.readouterr().out
    assert f"{LABEL} (neural cache): loss" in shown
    after = hashes(run)
    assert after.keys() == before.keys()
    assert {path for path in after if after[path] != before[path]} <= {str(run / "eval.json")}
    assert json.loads((run / "eval.json").read_text())["loss"] == plain["loss"]


def test_flags_that_would_be_ignored_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flags, why in (
        (["--adapt-rate", "1e-3"], "only with --adapt dynamic or both"),
        (["--adapt", "cache", "--adapt-rate", "1e-3"], "only with --adapt dynamic or both"),
        (["--adapt", "dynamic", "--cache-share", "0.2"], "only with --adapt cache or both"),
        (["--adapt", "dynamic", "--tasks", "x"], "not with --tasks"),
    ):
        fails(capsys, ["eval", "runs/none", *flags], why)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_learns_also_where_the_caller_computes_no_gradients(mode: Any) -> None:
    model, tokens, how = GPT(SHAPE), some(40), adapted(Adaptation("dynamic", rate=1e-2))
    expected = how(model, tokens, **WINDOWS).nats
    with mode():
        assert how(model, tokens, **WINDOWS).nats.tolist() == expected.tolist()
