"""Configuration is merged and typed, and every mistake is reported at once with its path and the nearest name."""

import json

import jsonschema
import pytest
import yaml

from minigpt.config import dump_config, load_config, parse_yaml, schema, split_flags, validate
from minigpt.errors import ConfigError


def problems(overrides: dict) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(None, overrides)
    return caught.value.problems


def test_all_mistakes_come_at_once_each_with_path_and_nearest_name() -> None:
    found = problems(
        {
            "train.bathc_size": 3,
            "model.norm": "rmsnrm",
            "modle.embed_dim": 3,
            "optimizer.learning_rate": "fast",
            "train.max_steps": 0,
            "schedule.warmup_steps": -1,
        }
    )
    text = "\n".join(found)
    assert len(found) == 6
    assert "train.bathc_size: no such setting; did you mean batch_size?" in text
    assert "model.norm: 'rmsnrm' is not a choice; did you mean rmsnorm?" in text
    assert "modle: no such setting; did you mean model?" in text
    elsewhere = "train.learning_rate: no such setting; did you mean optimizer.learning_rate?"
    assert problems({"train.learning_rate": 1}) == [elsewhere]
    assert problems({"train.max_minutes": "3m"}) == ["train.max_minutes: give minutes as a number, not '3m'"]
    assert "optimizer.learning_rate: input should be a valid number" in text
    assert "train.max_steps: input should be greater than 0, not 0" in text
    assert "schedule.warmup_steps: input should be greater than or equal to 0, not -1" in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model.embed_dim": 130}, "embed_dim 130 is not divisible by num_heads 4; try embed_dim 132"),
        ({"model.num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"model.head_dim": 7}, "rope needs an even head size"),
        ({"optimizer.learning_rate": float("nan")}, "finite number"),
        ({"train.batch_size": 10, "train.micro_batch_size": 4}, "not a multiple of micro_batch_size 4"),
        ({"train.batch_size": -2}, "greater than 0, not -2"),
        ({"schedule.context_warmup": 0.5, "model.max_seq_len": 30}, "model.max_seq_len is 30; make that 32"),
        ({"model": 3}, "model"),
    ],
)
def test_each_wrong_value_is_named_with_its_fix(overrides: dict, message: str) -> None:
    assert message in "\n".join(problems(overrides))


def test_numbers_with_an_exponent_are_numbers() -> None:
    assert parse_yaml("a: 1e-3\nb: 5E4\nc: -2.5e+1\nd: 1_000") == {"a": 1e-3, "b": 5e4, "c": -25.0, "d": 1000}
    assert parse_yaml("name: 1e\nhash: 12e4f") == {"name": "1e", "hash": "12e4f"}


def test_on_and_off_are_words_and_only_true_and_false_are_booleans() -> None:
    assert parse_yaml("[on, off, yes, true, False]") == ["on", "off", "yes", True, False]
    assert load_config(None, split_flags(["--train.compile", "on"])[0]).train.compile == "on"
    assert validate(parse_yaml(dump_config(load_config(None, {"train.compile": "off"})))).train.compile == "off"


def test_precedence_is_defaults_then_recipe_then_flags(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {max_steps: 5, batch_size: 3}\nmodel: {shape: gpt2, bias: false}\n")
    config = load_config(recipe, {"train.batch_size": 6})
    assert (config.train.max_steps, config.train.batch_size, config.train.seed) == (5, 6, 1337)
    assert (config.model.norm, config.model.bias, config.model.position) == ("layernorm", False, "learned")


def test_a_budget_of_its_own_replaces_the_default_one() -> None:
    assert load_config().train.max_steps == 2000
    assert load_config(None, {"train.max_minutes": 5}).train.max_steps is None


def test_one_cleaning_step_needs_no_list() -> None:
    assert load_config(None, {"data.clean": "nfc"}).data.clean == ("nfc",)


def test_resolved_config_survives_the_disk() -> None:
    config = load_config(None, {"model.shape": "gpt2", "data.clean": ["nfc", "lower"], "train.sample_prompt": "\n: ü"})
    assert validate(yaml.safe_load(dump_config(config))) == config
    assert validate(json.loads(config.model_dump_json())) == config


def test_flags_take_dash_and_underscore_equals_and_space() -> None:
    overrides, rest = split_flags(
        ["my.txt", "--train.max-steps", "10", "--train.batch_size=4", "--model.bias", "--json", "--data.source", "7"]
    )
    assert overrides == {
        "train.max_steps": 10, "train.batch_size": 4, "model.bias": True, "data.source": "7",
    }  # fmt: skip
    assert rest == ["my.txt", "--json"]
    with pytest.raises(ConfigError, match=r"--train\.seed: needs a value"):
        split_flags(["--train.seed"])


def test_broken_yaml_is_reported_with_its_line(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  max_steps: [1,\n")
    with pytest.raises(ConfigError, match="line 3"):
        load_config(recipe)
    recipe.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_config(recipe)
    with pytest.raises(ConfigError, match="no such recipe: shakespear-char; did you mean shakespeare-char"):
        load_config("shakespear-char")


def test_json_schema_describes_every_field_and_judges_recipes_as_we_do() -> None:
    document = schema()
    for section in document["$defs"].values():
        for name, field in section["properties"].items():
            assert field.get("description"), name
    jsonschema.validate({"train": {"max_steps": 3}}, document)
    for wrong in ({"train": {"max_stepz": 3}}, {"model": {"norm": "x"}}, {"train": {"max_steps": 0}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, document)
