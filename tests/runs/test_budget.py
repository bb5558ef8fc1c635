"""Test that a budget of time or FLOPs becomes a predicted plan, and that the run follows the plan."""

import dataclasses
import itertools
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_run import fails, json_of, text
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from minigpt.cli import main
from minigpt.config import LENGTHS, ModelConfig, RunConfig, load_config
from minigpt.config.section import MOST_SIZE
from minigpt.errors import ConfigError, RunError
from minigpt.files import read_lines
from minigpt.layout import whole_steps
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token
from minigpt.runs.budget import rule, within
from minigpt.runs.budget.amount import parse_amount
from minigpt.runs.budget.law import LAWS, Text
from minigpt.runs.budget.plan import Chooser, Plan
from minigpt.runs.budget.rule import Size
from minigpt.runs.budget.speed import Speed, fit_speed
from minigpt.runs.budget.within import Budgeted, _Settings, plan_within, two_digits
from minigpt.runs.plan import write_run_files
from minigpt.tokenizers import ByteTokenizer
from minigpt.weights import checkpoint

NOVEL = Text(train_tokens=1_000_000, val_tokens=100_000, vocab_size=65, bytes_per_token=1.0, five_gram=1.5)
LAPTOP = Speed(per_layer=1e-3, per_flop=1 / 50e9)
QUIET = ["--train.device", "cpu", "--train.precision", "fp32", "--logging.plots", "false"]


def configure(chosen: Mapping[str, Any], **own: object) -> RunConfig:
    """Make a config as the command does: the person's settings stay."""
    return load_config(None, {**chosen, "model.vocab_size": 65, **{k.replace("__", "."): v for k, v in own.items()}})


def chooser(text: Text = NOVEL, speed: Speed = LAPTOP, seconds: float = math.inf, flops: float = math.inf) -> Chooser:
    return Chooser(text, speed, configure, seconds, flops)


@pytest.mark.parametrize(
    ("written", "seconds", "flops"),
    [("90s", 90, None), ("10m", 600, None), ("2h", 7200, None), ("1h30m", 5400, None), ("1.5 h", 5400, None),
     ("1e15flops", None, 1e15), ("2.5E12 FLOPs", None, 2.5e12), ("1e3s", 1000, None)],
)  # fmt: skip
def test_a_budget_is_time_or_work(written: str, seconds: float | None, flops: float | None):
    amount = parse_amount(written)
    assert (amount.seconds, amount.flops) == (seconds, flops)


@pytest.mark.parametrize("written", ["", "10", "10x", "m", "-5m", "0s", "ten minutes", "1e999h", "5m1e9flops", "nan"])
def test_a_text_that_is_not_a_budget_is_refused_with_examples(written: str):
    with pytest.raises(ConfigError, match=r"write 90s, 10m, 1h30m or 1e15flops"):
        parse_amount(written)


@pytest.mark.parametrize(
    "shape",
    [{}, {"shape": "gpt2", "num_layers": 3}, {"num_kv_heads": 2, "head_dim": 24, "ff_dim": 100}, {"vocab_size": 700},
     {"softmaxes": 3}],
)  # fmt: skip
def test_a_size_counts_what_the_built_model_has(shape: dict):
    config = ModelConfig(**{"vocab_size": 65, **shape})
    size, model = Size.of(config), GPT(config)
    blocks = sum(p.numel() for name, p in model.named_parameters() if "blocks" in name and p.dim() == 2)
    assert size.parameters == blocks
    assert size.token_flops(config.max_seq_len) == flops_per_token(config)


def test_each_size_of_the_ladder_is_a_model_larger_than_the_last():
    sizes = [Size.of(configure(rule.shape(*step, 64, 65)).model).parameters for step in rule.LADDER]
    assert sizes == sorted(set(sizes))


TOKENS = st.floats(1e4, 1e9)
PARAMETERS = st.floats(1e4, 1e9)
KINDS = st.sampled_from(sorted(LAWS))


@given(KINDS, PARAMETERS, TOKENS, st.floats(1.0, 100.0), st.integers(1, 10_000))
def test_more_text_or_steps_or_parameters_never_predict_a_higher_loss(kind, size, tokens, more, steps):
    law, endless = LAWS[kind], Text(10**12, 10**6, 65, 1.0, 1.5, kind)
    loss = law.loss(endless, size, tokens, steps)
    assert law.loss(endless, size * more, tokens, steps) <= loss
    assert law.loss(endless, size, tokens * more, steps) <= loss
    assert law.loss(endless, size, tokens, int(steps * more)) <= loss
    assert loss > law.floor * endless.five_gram


@given(KINDS, PARAMETERS, st.integers(10_000, 10**9), st.floats(1.0, 1e4), st.floats(1.0, 10.0))
def test_repeated_text_is_worth_less_and_no_more_than_so_many_passes(kind, size, unique, passes, more):
    law, book = LAWS[kind], Text(unique, unique, 65, 1.0, 1.5, kind)
    once, often = law.worth(book, size, unique), law.worth(book, size, passes * unique)
    assert once == unique
    assert unique <= often <= passes * unique * (1 + 1e-12)
    assert often <= law.worth(book, size, passes * more * unique) <= law.worth(book, size, 1e15)
    enough = law.worth(book, size, law.enough(book, size)) - unique
    assert enough == pytest.approx(0.9 * (law.worth(book, size, 1e15) - unique), rel=5e-3, abs=1)
    # a model with more weights memorises the text earlier
    assert law.worth(book, size * more, passes * unique) <= often * (1 + 1e-12)


def test_the_loss_is_of_a_token_so_longer_tokens_carry_more():
    pairs = Text(500_000, 50_000, 1000, 2.0, 1.5)  # the same text, two bytes per token
    law = LAWS["text"]
    assert law.loss(pairs, 1e5, 250_000, 400) == pytest.approx(2 * law.loss(NOVEL, 1e5, 500_000, 400))


STEPS = ((2, 2e8, 6.5e4), (2, 1e9, 5e5), (4, 2e9, 2.6e5), (4, 1.4e10, 2e6), (6, 2e10, 8e5), (6, 1.5e11, 6e6))


@given(st.tuples(st.floats(1e-5, 1e-1), st.floats(1e-12, 1e-9), st.floats(1e-9, 1e-6)))
def test_the_prices_of_steps_are_found(prices: tuple[float, float, float]):
    speed = fit_speed([(of, sum(map(math.prod, zip(of, prices, strict=True)))) for of in STEPS])
    found = (speed.per_layer, speed.per_flop, speed.per_element)
    for of in STEPS:  # a cost with almost no effect on the time cannot be found, and does not matter
        right, made = (sum(map(math.prod, zip(of, some, strict=True))) for some in (prices, found))
        assert made == pytest.approx(right, rel=1e-4)


@given(st.lists(st.floats(1e-3, 1e2), min_size=1, max_size=6))
def test_no_price_is_negative_and_none_would_leave_less(seconds: list[float]):
    points = list(zip(STEPS, seconds, strict=False))
    speed = fit_speed(points)
    found = np.array([speed.per_layer, speed.per_flop, speed.per_element])
    assert (found >= 0).all() and found.any()
    table = np.array([np.array(of) / taken for of, taken in points])
    _, least = nnls(table / np.linalg.norm(table, axis=0), np.ones(len(points)))
    assert np.linalg.norm(table @ found - 1) == pytest.approx(least, abs=1e-6)


@settings(max_examples=25)
@given(st.floats(1e-4, 1e-2), st.floats(1e9, 1e13), st.floats(30, 1e4))
def test_what_is_chosen_fits_into_the_time_and_uses_it(per_layer: float, flops_a_second: float, seconds: float):
    plan = chooser(speed=Speed(per_layer, 1 / flops_a_second), seconds=seconds).best()
    total = plan.train_seconds + plan.after_seconds
    assert plan.steps == 1 or total <= seconds
    assert plan.steps == 1 or plan.limited or total >= seconds - plan.step_seconds
    assert plan.tokens == plan.steps * plan.config.train.batch_size * plan.config.model.max_seq_len


def test_more_time_buys_a_lower_loss_with_a_larger_model():
    plans = [chooser(Text(10**10, 10**6, 65, 1.0, 1.5), seconds=s).best() for s in (20, 60, 600, 7200, 86400)]
    for less, more in itertools.pairwise(plans):
        assert more.loss < less.loss
        assert more.tokens > less.tokens
        assert more.config.model.max_seq_len >= less.config.model.max_seq_len
    assert plans[-1].size.parameters > 5 * plans[0].size.parameters


def test_a_machine_with_high_cost_per_step_takes_larger_batches():
    def a_step(speed: Speed) -> int:
        config = chooser(Text(10**10, 10**6, 65, 1.0, 1.5), speed, seconds=120).best().config
        return config.train.batch_size * config.model.max_seq_len

    assert a_step(Speed(5e-3, 1e-14)) > 2 * a_step(Speed(1e-5, 1e-10))


def test_a_small_text_is_not_read_for_ever():
    note = Text(train_tokens=20_000, val_tokens=2_000, vocab_size=65, bytes_per_token=1.0, five_gram=2.0)
    plan = chooser(note, seconds=3600).best()
    assert plan.limited
    assert plan.train_seconds + plan.after_seconds < 3600
    assert plan.config.model.max_seq_len < 2_000
    assert plan.config.optimizer.weight_decay > 0
    assert not chooser(Text(10**9, 10**6, 65, 1.0, 2.0), seconds=3600).best().limited


def test_many_passes_get_dropout_and_spare_time_masked_inputs():
    assert [rule.dropout(passes, 5.0) for passes in (0.5, 4, 8, 32, 1000)] == [0, 0, 0.1, 0.3, 0.4]
    assert rule.dropout(8, 2.5) == 0 < rule.dropout(8, 2.6)  # too small to memorise the text
    note = Text(train_tokens=20_000, val_tokens=2_000, vocab_size=65, bytes_per_token=1.0, five_gram=2.0)
    short, long = chooser(note, seconds=6).best(), chooser(note, seconds=3600).best()
    assert not short.limited and short.config.train.masked_inputs == 0
    assert long.config.model.drops("block") == (pytest.approx(0.12, abs=0.02), True)
    assert long.config.train.masked_inputs == rule.MASKED
    size, shape, batch = long.size, long.config.model, long.config.train.batch_size
    assert long.step_seconds == pytest.approx(2 * LAPTOP.step(size, shape.max_seq_len, batch))
    assert long.flops == 2 * long.tokens * size.token_flops(shape.max_seq_len)
    once = chooser(Text(10**9, 10**6, 65, 1.0, 2.0), seconds=3600).best()
    assert once.config.model.locked_dropout == () and once.config.model.dropout == 0


def test_a_long_plan_is_shown_with_its_day_and_without_exponents():
    text, budget = Text(300_000_000, 1_000_000, 4096, 3.5, 1.2), parse_amount("200h")
    plan = chooser(text, Speed(per_layer=1e-4, per_flop=1 / 400e12), 7.2e5).best()
    report = {"predicted_bits_per_byte": 1.0, "promised_seconds": 7.2e5, "passes": 1.04}
    told = Budgeted(budget, text, plan, report, ByteTokenizer(), time.perf_counter(), 0.0).explain()
    assert plan.size.parameters > 1e8 and "e+" not in told, told
    assert "--budget 10m gives it more time" not in told, told
    assert ": 1 pass over 1,000 MB" in told or ": 1 pass over 1,100 MB" in told, told
    assert re.search(r"done at 2\d{3}-\d\d-\d\d \d\d:\d\d$", told), told
    assert [two_digits(number) for number in (0.0123, 0.85, 7, 537.4)] == ["0.012", "0.85", "7", "540"]


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="Windows keeps its own time zone")
def test_the_end_of_a_night_in_which_the_clocks_change_is_right(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    try:
        evening = datetime(2026, 10, 24, 22, tzinfo=UTC).astimezone()  # 00:00 in summer time
        assert within.clock_time(evening, 3600 * 8) == "07:00:00"
        assert within.clock_time(evening, 3600 * 25) == "2026-10-26 00:00"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_a_budget_of_work_is_kept():
    plan = chooser(flops=1e13).best()
    assert 0.95e13 < plan.flops <= 1e13


def test_masked_inputs_that_are_given_count_in_the_plan():
    def given(share: float, text: Text, **budget: float) -> Plan:
        return Chooser(text, LAPTOP, partial(configure, train__masked_inputs=share), **budget).best()

    def once(plan: Plan) -> float:
        return LAPTOP.step(plan.size, plan.config.model.max_seq_len, plan.config.train.batch_size)

    assert 0.95e13 < given(0.5, NOVEL, flops=1e13).flops <= 1e13
    assert (plan := given(0.5, NOVEL, seconds=60)).step_seconds == pytest.approx(2 * once(plan))
    note = Text(train_tokens=20_000, val_tokens=2_000, vocab_size=65, bytes_per_token=1.0, five_gram=2.0)
    for share, passes in ((0.0, 1), (0.5, 2)):  # with so much time, the rule itself would choose masked inputs
        plan = given(share, note, seconds=3600)
        assert plan.limited and plan.step_seconds == pytest.approx(passes * once(plan))


def test_evaluations_cost_under_three_percent():
    for seconds in (20.0, 60.0, 600.0):
        plan = chooser(seconds=seconds).best()
        config = plan.config.train
        whole = -(-NOVEL.val_tokens // (config.batch_size * plan.config.model.max_seq_len))
        one = (config.eval_batches or whole) * plan.step_seconds / 3
        assert one * (plan.steps // config.eval_every + 1) <= max(0.03 * seconds, plan.step_seconds) * 1.01


def own(**settings: object) -> Plan:
    return Chooser(NOVEL, LAPTOP, lambda chosen: configure(dict(chosen), **settings), seconds=60).best()


def test_explicit_settings_are_kept_and_the_rest_is_chosen_around_them():
    plan = own(model__embed_dim=80, model__num_heads=5, train__batch_size=6, train__eval_batches=2)
    config = plan.config
    assert (config.model.embed_dim, config.model.num_heads, config.train.batch_size) == (80, 5, 6)
    assert config.train.eval_batches == 2
    assert plan.size == Size.of(config.model)
    assert own(train__micro_batch_size=32).config.train.batch_size % 32 == 0
    for width, heads in ((256, 4), (96, 3), (200, 2), (80, 2)):
        given = _Settings(None, {"model.embed_dim": width})
        assert given(rule.shape(2, 32, 64, 65)).model.num_heads == rule.heads(width) == heads
    both = _Settings(None, {"model.embed_dim": 80, "model.num_heads": 5})
    assert both(rule.shape(2, 32, 64, 65)).model.num_heads == 5
    six = _Settings(None, {"model.num_heads": 6})  # which do not divide the default width
    assert six({}).model.embed_dim == 48 and six(rule.shape(4, 192, 64, 65)).model.num_heads == 6
    heads_of_all = [1, 1, 2, 3, 3, 2, 2, 3, 3, 4, 6, 8, 10, 12, 16, 20, 24, 32]
    assert [rule.heads(width) for _, width in rule.LADDER] == heads_of_all
    assert own(optimizer__learning_rate=1e-3, schedule__kind="cosine").config.schedule.kind == "cosine"
    with pytest.raises(ConfigError, match="num_heads 7"):
        own(model__embed_dim=64, model__num_heads=7)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--budget", "10"], ["'10' is not a budget", "10m"]),
        (["--budget", "10m", "--train.max-steps", "50"], ["--train.max-steps: ", "one of the two"]),
        (["--budget", "10m", "--train.max-minutes", "1"], ["--train.max-minutes: ", "one of the two"]),
        (["--budget", "10m", "--resume"], ["--resume", "--budget"]),
        (["--budget", "10m", "--tiny-run"], ["--tiny-run", "--budget"]),
        (["--dry-run", "--train.max-steps", "5"], ["--dry-run", "--budget"]),
        (["--budget", "10m", "--model.embed-dim", "x"], ["--model.embed-dim: "]),
    ],
)
def test_mistakes_end_in_one_line(flags: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]):
    fails(capsys, ["train", "stories", *flags], *parts)


@pytest.fixture
def cats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cats.txt").write_text(text(4000))
    return tmp_path


def test_a_dry_run_shows_the_plan_and_trains_nothing(cats: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--model.max-seq-len", "32", "--model.num-layers", "1", "--tokenizer.kind", "char", *QUIET]
    report = json_of(capsys, "train", "cats.txt", "--budget", "3s", "--dry-run", *flags)
    assert set(report) == {
        "asked", "promised_seconds", "predicted_loss", "predicted_bits_per_byte", "steps", "tokens", "passes", "flops",
        "step_seconds", "measuring_seconds", "five_gram_bits", "parameters", "memory_bytes",
    }  # fmt: skip
    assert report["predicted_bits_per_byte"] == pytest.approx(report["predicted_loss"] / math.log(2))
    assert not (cats / "runs").exists()


def test_the_command_trains_the_predicted_run_and_only_once(cats: Path, capsys: pytest.CaptureFixture[str]):
    command = ["train", "cats.txt", "--budget", "4s", "--model.embed-dim", "32", *QUIET]
    ended = json_of(capsys, *command)
    receipt = json.loads((cats / "runs/cats/receipt.json").read_text())["budget"]
    config = load_config(cats / "runs/cats/config.yaml")
    assert receipt["asked"]["budget"] == "4s"
    assert receipt["promised_seconds"] > 0
    assert receipt["predicted_loss"] > 0
    assert config.model.embed_dim == 32
    assert config.schedule.kind == "linear"
    assert config.train.max_minutes is not None
    assert 0 < config.train.max_minutes < 4 / 60
    assert ended["stop_reason"] == "budget used up"
    assert ended["val_loss"] > 0
    with capsys.disabled():
        print(f"\nbudget 4s: loss {receipt['predicted_loss']:.3f} predicted, {ended['val_loss']:.3f} measured", end=" ")

    assert json_of(capsys, *command)["step"] == ended["step"]  # the same run, which has finished
    assert [path.name for path in (cats / "runs").iterdir()] == ["cats"]
    fails(capsys, ["train", "cats.txt", "--budget", "5s", "--name", "cats"], "another budget", "--name")


@pytest.mark.parametrize(("characters", "kind", "ids"), [(0, "char", 512), (99_999, "char", 512), (100_000, "bpe", 512),
                                                         (1_115_394, "bpe", 1024), (10**7, "bpe", 2048),
                                                         (10**9, "bpe", 4096)])  # fmt: skip
def test_the_tokenizer_follows_from_the_size_of_the_text(characters: int, kind: str, ids: int):
    assert rule.tokenizer(characters) == {"tokenizer.kind": kind, "tokenizer.vocab_size": ids}
    for own, size in (({}, ids), ({"tokenizer.kind": "word"}, MOST_SIZE)):  # all words, as without a budget
        configure = within._Settings(None, own)
        configure.choose_tokenizer(characters)
        assert configure({}).tokenizer.vocab_size == size


@pytest.mark.slow
def test_a_text_alone_is_planned_for_five_minutes(cats: Path, capsys: pytest.CaptureFixture[str]):
    """A length, a recipe, or --tiny-run decides how long the run is, instead of five minutes."""
    report = json_of(capsys, "train", "cats.txt", "--dry-run", *QUIET)
    assert report["asked"]["budget"] == "5m"
    assert main(["train", "cats.txt", "--dry-run", "--tokenizer.vocab-size", "300", *QUIET]) == 0
    assert "5m allow" in (told := capsys.readouterr().out) and "300 ids" in told
    for length in (["--train.max-steps", "3"], ["--tiny-run"], ["demo"]):
        fails(capsys, ["train", "cats.txt", "--dry-run", *length], "give a --budget")


def test_the_same_command_finds_a_run_in_a_folder_of_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    own = {"data.source": "cats.txt", "logging.runs_dir": str(tmp_path)}
    asked = {"asked": {"budget": "30s", "settings": own | dict.fromkeys(LENGTHS)}}
    write_run_files(tmp_path / "try/2", load_config(None, own), {"data": {"sha256": {}}, "budget": asked}, "settings")
    named = []
    monkeypatch.setattr(within, "train", lambda config, name, **more: named.append((name, config.logging.log_every)))
    within.train_within("30s", own, name="try/2", quiet=True)
    within.train_within("30s", {**own, "logging.log_every": "3"}, name="try/2", quiet=True)
    assert named == [("try/2", 10), ("try/2", 3)]


def test_a_recipes_rate_is_not_used_for_another_optimizer(tmp_path: Path):
    (tmp_path / "my.yaml").write_text("optimizer: {learning_rate: 0.03, adamw_ratio: 0.2, beta2: 0.9}")
    kind = {"optimizer.kind": "adamw"}
    optimizer = within._Settings(str(tmp_path / "my.yaml"), kind)({}).optimizer
    assert optimizer == load_config(None, {**kind, "optimizer.beta2": 0.9}).optimizer


def test_a_small_text_is_called_small(tmp_path: Path):
    (tmp_path / "small.txt").write_text(text(100))
    settings = {"data.source": str(tmp_path / "small.txt"), "train.device": "cpu", "train.precision": "fp32"}
    found = plan_within("2h", settings)
    assert found.text.vocab_size < 100  # a tokenizer of characters
    assert "the text is small" in found.explain()
    assert found.plan.limited and re.search(
        r"passes over 0.0\d+ MB, dropout 0\.\d.*; more passes would not help", found.explain()
    )
    assert rule.rates(500, 3, 1)["train.early_stopping"] is None
    assert [rule.rates(steps, 3, 1)["optimizer.momentum"] for steps in (500, 5000)] == [0.9, 0.95]
    assert rule.rates(500, 20, 1)["train.early_stopping"] == rule.PATIENCE


def test_flops_become_steps(cats: Path):
    found = plan_within("1e9flops", {"data.source": "cats.txt", "train.device": "cpu", "train.precision": "fp32"}, None)
    config = found.config()
    assert config.train.max_steps == found.plan.steps
    assert config.train.max_minutes is None
    assert found.report["flops"] <= 1e9


def test_the_end_reports_what_a_different_speed_changed(cats: Path):
    found = plan_within("1e9flops", {"data.source": "cats.txt", "train.device": "cpu", "train.precision": "fp32"}, None)
    planned = found.plan.steps
    assert found.explain_end(planned) is None and found.explain_end(round(0.9 * planned)) is None
    told = {steps: found.explain_end(steps) or "" for steps in (planned // 2, 2 * planned)}
    for (steps, line), word in zip(told.items(), ("slower", "faster"), strict=True):
        assert line.startswith(f"{steps:,} steps where {planned:,} were planned: the machine became {word}")
    lost, won = (float(line.rsplit(" ", 1)[-1]) for line in told.values())
    assert won < found.plan.loss < lost


def test_a_loss_above_chance_is_never_predicted(cats: Path):
    found = plan_within("1e9flops", {"data.source": "cats.txt", "train.device": "cpu", "train.precision": "fp32"}, None)
    chance = math.log(found.text.vocab_size)
    for loss, told in ((chance - 0.01, f"(loss {chance - 0.01:.3f})"), (chance, "little better than chance")):
        short = dataclasses.replace(found, plan=dataclasses.replace(found.plan, loss=loss))
        assert told in short.explain()
        assert ("predicted loss" in (short.explain_end(2 * found.plan.steps) or "")) == (loss < chance)


def test_a_run_killed_before_its_first_file_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "big").mkdir()
    (tmp_path / "big/.lock").write_text("{}")
    assert within._find_earlier(tmp_path, "big", "my", {}) is None
    (tmp_path / "big/config.yaml").write_text("")
    with pytest.raises(RunError, match="exists with other settings"):
        within._find_earlier(tmp_path, "big", "my", {"budget": "1m"})


@pytest.mark.slow
def test_the_same_command_continues_a_run_that_was_killed(cats: Path, capsys: pytest.CaptureFixture[str]):
    every = ["--train.save-every", "5", "--logging.log-every", "1"]
    command = ["train", "cats.txt", "--budget", "25s", "--model.embed-dim", "32", *every, *QUIET]
    first = subprocess.Popen([sys.executable, "-m", "minigpt", *command], env={**os.environ, "OMP_NUM_THREADS": "1"})
    folder, deadline = cats / "runs/cats/checkpoints", time.monotonic() + 120
    while not whole_steps(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = json.loads((checkpoint.resolve(folder / "last") / "state.json").read_text())["train"]
    planned = (cats / "runs/cats/config.yaml").read_text(), (cats / "runs/cats/receipt.json").read_text()
    ended = json_of(capsys, *command)
    assert ended["step"] > before["step"]
    seconds = [line["seconds"] for line in read_lines(cats / "runs/cats/metrics.jsonl")]
    assert seconds == sorted(seconds) and ended["seconds"] > before["seconds"] > 0  # one clock for both parts
    assert (cats / "runs/cats/config.yaml").read_text() == planned[0]
    again = json.loads((cats / "runs/cats/receipt.json").read_text())["budget"]
    assert again == json.loads(planned[1])["budget"]
