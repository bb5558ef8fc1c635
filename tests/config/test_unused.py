"""Test the line for each setting that has no effect: for flags and a person's recipe, not for a run's config."""

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tuned_run import make_base

from minigpt.cli import main
from minigpt.cli.arguments import parse
from minigpt.cli.generate import Generate, asked_settings
from minigpt.config import GenerationConfig, RunConfig, dump_config, load_config, recipe_settings, recipes, split_flags
from minigpt.config.unused import without_effect, written
from minigpt.console import messages
from minigpt.errors import ConfigError
from minigpt.runs.budget import within
from minigpt.runs.finetune import fine_tune
from minigpt.runs.record import RunRecord
from minigpt.runs.repeat import receipt_line

UNUSED: list[tuple[dict[str, Any], str, str]] = [
    ({}, "tokenizer.vocab_size", "tokenizer.kind is char; it is for bpe or word"),
    ({"tokenizer.kind": "word"}, "tokenizer.pattern", "tokenizer.kind is word; it is for bpe"),
    ({"tokenizer.path": "tokenizer.json"}, "tokenizer.kind", "tokenizer.path names a finished tokenizer"),
    ({"finetune.base": "runs/my"}, "tokenizer.vocab_size", "keeps its base's tokenizer"),
    ({"finetune.val_source": "val.jsonl"}, "data.val_fraction", "finetune.val_source names"),
    ({"data.source": "my.txt"}, "data.stories_count", "data.source is my.txt; it is for stories"),
    ({"optimizer.kind": "adamw"}, "optimizer.momentum", "optimizer.kind is adamw; it is for muon"),
    ({}, "schedule.decay_fraction", "schedule.kind is cosine; it is for trapezoidal"),
    ({"schedule.kind": "constant"}, "schedule.min_lr_ratio", "schedule.kind is constant"),
    ({"model.shape": "gpt2"}, "model.rope_theta", "model.position is learned; it is for rope"),
    ({}, "train.masked_weight", "train.masked_inputs is 0"),
    ({"recovery.spike_deviations": 0}, "recovery.spike_window", "recovery.spike_deviations is 0"),
    ({"generation.length_penalty": 2}, "generation.length_penalty", "num_beams is 1"),
    ({"generation.num_beams": 4, "generation.diversity_penalty": 1}, "generation.diversity_penalty", "groups is 1"),
    ({"generation.temperature": 0, "generation.top_p": 0.9}, "generation.top_p", "temperature is 0"),
    ({"generation.penalty_alpha": 0.6, "generation.top_k": 4}, "generation.temperature", "penalty_alpha"),
]


@pytest.mark.parametrize(("settings", "name", "why"), UNUSED)
def test_a_setting_without_effect_is_told_with_the_reason(settings: dict[str, Any], name: str, why: str) -> None:
    settings = {"generation.temperature": 0.7, **settings}
    line = without_effect(load_config(None, settings), [name])[name]
    assert line.startswith(f"{name}: no effect, since ") and why in line


def test_a_setting_with_an_effect_is_not_told() -> None:
    used = {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 300, "tokenizer.pattern": "gpt2", "model.rope_theta": 5e4,
            "data.stories_count": 60, "optimizer.momentum": 0.9, "schedule.kind": "trapezoidal",
            "schedule.decay_fraction": 0.2, "schedule.min_lr_ratio": 0.0, "train.masked_inputs": 0.5,
            "train.masked_weight": 0.3, "generation.num_beams": 4, "generation.num_beam_groups": 2,
            "generation.diversity_penalty": 1.0, "generation.length_penalty": 2.0}  # fmt: skip
    assert without_effect(load_config(None, used), used) == {}
    greedy = {"generation.temperature": 0, "generation.top_p": 1.0}  # a value that changes nothing at any temperature
    assert without_effect(load_config(None, greedy), greedy) == {}


def test_the_recipes_have_no_setting_without_effect() -> None:
    for path in recipes().values():
        assert without_effect(load_config(path), recipe_settings(str(path))) == {}, path


def test_a_runs_config_and_a_shipped_recipe_are_not_what_a_person_wrote(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("schedule: {decay_fraction: 0.2}")
    (tmp_path / "config.yaml").write_text(dump_config(RunConfig()))
    assert written(str(tmp_path / "mine.yaml"), {"train.seed": 1}) == ["schedule.decay_fraction", "train.seed"]
    for not_theirs in (str(tmp_path / "config.yaml"), "shakespeare-char"):
        assert written(not_theirs, {"train.seed": 1}) == ["train.seed"]


def test_the_line_that_repeats_a_finetuning_has_only_what_it_uses(tmp_path: Path) -> None:
    config = load_config(None, {"finetune.base": "runs/base", "tokenizer.kind": "bpe", "generation.temperature": 0})
    line = receipt_line(
        cast(RunRecord, SimpleNamespace(path=tmp_path, config=config, saved=None, receipt={})), flags=True
    )
    flags = split_flags(shlex.split(line)[2:])[0]
    assert flags["tokenizer.kind"] == "bpe" and without_effect(load_config(None, flags), flags) == {}
    assert {f"generation.{name}" for name in GenerationConfig.model_fields} < set(flags)


def test_prepare_tells_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "cats.txt").write_text("The cat sat on the mat.\n" * 80)
    argv = ["prepare", str(tmp_path / "cats.txt"), "--out", str(tmp_path / "out"), "--tokenizer.vocab-size", "300"]
    assert main(argv) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert "tokenizer.vocab_size: no effect, since tokenizer.kind is char; it is for bpe or word" in told


def test_a_fine_tuning_and_a_budget_tell_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended = {"schedule.context_warmup": 0.5, "train.device": "cpu"}  # is refused just after the lines
    with pytest.raises(ConfigError, match="context_warmup"):
        fine_tune(make_base(tmp_path / "base"), "my.txt", {**ended, "optimizer.momentum": 0.9, "lora.rank": 2})
    assert "optimizer.momentum: no effect, since optimizer.kind is adamw" in capsys.readouterr().err
    (tmp_path / "cats.txt").write_text("The cat sat on the mat.\n" * 80)
    own = {"data.source": str(tmp_path / "cats.txt"), "data.cache_dir": str(tmp_path / "cache")}
    own |= {"tokenizer.vocab_size": 300, "train.masked_weight": 0.3}  # a plan may mask inputs
    within._prepare(within._Settings(None, own), messages())
    told = " ".join(capsys.readouterr().err.split())
    assert "tokenizer.vocab_size: no effect, since tokenizer.kind is char" in told and "masked_weight" not in told


def test_generate_tells_it_for_flags_only(tmp_path: Path, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path))
    (tmp_path / "generation.yaml").write_text("bold: {top_k: 40}")
    argv = [str(tmp_path / "run"), "--preset", "bold", "--temperature", "0", "--length-penalty", "2"]
    asked_settings(parse(Generate, argv, "generate")[0])
    assert capsys.readouterr().err == "--length-penalty: no effect, since num_beams is 1\n"
