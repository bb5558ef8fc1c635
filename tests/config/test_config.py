"""Test that configuration is merged and typed, and that all mistakes are reported at once with the nearest name."""

import json
import re

import jsonschema
import pytest
import yaml

from minigpt.config import dump_config, dump_yaml, load_config, parse_yaml, schema, split_flags, validate
from minigpt.config.presets import load_preset
from minigpt.config.tree import RunConfig
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


def test_an_empty_section_of_a_recipe_is_named(tmp_path) -> None:
    (tmp_path / "r.yaml").write_text("train:\n  # max_steps: 3\n")
    with pytest.raises(ConfigError, match=r"^train: holds settings, so it cannot be empty; write settings below it"):
        load_config(tmp_path / "r.yaml")


def test_a_preset_may_have_a_number_as_its_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "generation.yaml").write_text("1: {temperature: 1.1}\n")
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path))
    assert load_preset("1") == {"temperature": 1.1}
    with pytest.raises(ConfigError, match="no preset 2"):
        load_preset("2")


def test_precedence_is_defaults_then_recipe_then_flags(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train: {max_steps: 5, batch_size: 3}\nmodel: {shape: gpt2, bias: false}\n")
    config = load_config(recipe, {"train.batch_size": 6})
    assert (config.train.max_steps, config.train.batch_size, config.train.seed) == (5, 6, 1337)
    assert (config.model.norm, config.model.bias, config.model.position) == ("layernorm", False, "learned")


def test_a_flag_that_changes_a_choice_changes_all_that_follows_from_it(tmp_path) -> None:
    resolved = tmp_path / "config.yaml"  # of a run: it holds every setting
    own = {"tokenizer.kind": "word", "model.vocab_size": 300, "model.tie_embeddings": False, "model.num_layers": 3}
    resolved.write_text(dump_config(load_config(None, own)))
    assert load_config(resolved) == load_config(None, own)
    gpt2 = load_config(None, {**own, "model.shape": "gpt2"})
    assert load_config(resolved, {"model.shape": "gpt2"}) == gpt2
    assert (gpt2.model.position, gpt2.model.tie_embeddings) == ("learned", False)
    bpe = load_config(resolved, {"tokenizer.kind": "bpe"})
    assert (bpe.tokenizer, bpe.model.vocab_size) == (load_config(None, {"tokenizer.kind": "bpe"}).tokenizer, None)
    assert load_config(resolved, {"data.source": "other.txt"}).model.vocab_size is None
    assert load_config(resolved, {"train.seed": 2}).model.vocab_size == 300
    resolved.write_text("model: {shape: gtp2}")
    assert load_config(resolved, {"model.shape": "gpt2"}) == load_config(None, {"model.shape": "gpt2"})


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


def test_a_flag_of_several_texts_takes_one_as_it_is() -> None:
    for text in ("User:", "#", "3", "@x", " ", "null"):
        assert load_config(None, split_flags(["--generation.stop", text])[0]).generation.stop == (text,)
    flags = ["--finetune.freeze", "*.bias,head", "--generation.stop", '["a", "b, c"]', "--generation.bad-words='x'"]
    config = load_config(None, split_flags(flags)[0])
    assert config.finetune.freeze == ("*.bias", "head")
    assert (config.generation.stop, config.generation.bad_words) == (("a", "b, c"), ("x",))


def test_broken_yaml_is_reported_with_its_line(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  max_steps: [1,\n")
    with pytest.raises(ConfigError, match="line 3"):
        load_config(recipe)
    recipe.write_text("- a\n- b\n")
    with pytest.raises(ConfigError, match="mapping of sections"):
        load_config(recipe)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config("a" * 300)
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


def test_a_key_given_twice_is_an_error_that_names_both_lines(tmp_path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("train:\n  max_steps: 3\n  seed: 1\n  max_steps: 2000\n")
    with pytest.raises(ConfigError, match=r"r\.yaml, line 4, .*max_steps is given twice, in lines 2 and 4"):
        load_config(recipe)
    for text in ("a: 1\nb: 2\n'a': 3", "{a: 1, a: 1}", 'x: {a: 1, "a": 1}'):
        with pytest.raises(ConfigError, match="a is given twice"):
            parse_yaml(text)


def test_of_a_flag_given_twice_the_last_counts() -> None:
    assert split_flags(["--train.max-steps", "3", "--train.max_steps=2000"])[0] == {"train.max_steps": 2000}


@pytest.mark.parametrize("word", ["1:30", "1:30:15.5", "190:20", "2024-13-45", "2001-12-14t21:59:43.10-05:00", "="])
def test_words_of_yaml_1_1_stay_words(word: str) -> None:
    assert parse_yaml(f"a: {word}") == {"a": word}
    assert "should be a valid" in problems({"train.max_steps": parse_yaml(word)})[0]


def test_numbers_are_as_they_are_read_aloud() -> None:
    assert parse_yaml("[010, 0x1F, -0b11, 1_000, 1., .5, -1.5e3, 1e400]") == [
        10,
        31,
        -3,
        1000,
        1.0,
        0.5,
        -1500.0,
        float("inf"),
    ]
    for given, steps in ((1000, 1000), (1e3, 1000), ("1_000", 1000), ("7", 7)):
        assert load_config(None, {"train.max_steps": given}).train.max_steps == steps


def test_no_number_is_a_boolean() -> None:
    """Checks every setting that is a number, and the numbers in a mapping."""
    for name, section in RunConfig.model_fields.items():
        for field, info in type(section.default).model_fields.items():
            if re.search(r"\b(int|float)\b", kind := str(info.annotation)):
                value = {"a": True} if "dict" in kind else True
                assert "give a number, not true" in problems({f"{name}.{field}": value})[0], field


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &x [1]\nb: *x", "aliases such as .name are not allowed; write the value again"),
        ("a: !!python/object:os.system x", "tags such as !!name are not allowed"),
        ("a: !!timestamp 2024-13-45", "tags such as !!name are not allowed"),
        ("a: !mine x", "tags such as !!name are not allowed"),
        ("[" * 90_000, "nested deeper than 20"),
        ("- " * 40_000, "nested deeper than 20"),
        ("a" * 100_001, "longer than 100,000 characters"),
        ("1" * 5000, "not a number"),
        ("train: {seed: 0x" + "f" * 5000 + "}", "not a number"),
        ("? [a]\n: b", "a key must be a plain word"),
        ("a: \x00", "(control|special) characters are not allowed"),
        ("a: \udc80", "special characters are not allowed"),
    ],
)
def test_yaml_that_could_hurt_is_one_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_yaml(text)


def test_every_text_survives_the_disk() -> None:
    texts = [
        "1e3",
        "010",
        "0x1F",
        "1:30",
        "on",
        "true",
        "~",
        "",
        "null",
        ".inf",
        "2024-01-02",
        "a: b",
        "*a",
        "&a",
        "!a",
        "\x1b",
    ]
    for text in texts:
        config = load_config(None, {"train.sample_prompt": text, "generation.stop": [text] if text else []})
        assert validate(parse_yaml(dump_config(config))) == config
    shared = [1]
    assert parse_yaml(dump_yaml({"a": shared, "b": shared})) == {"a": [1], "b": [1]}
