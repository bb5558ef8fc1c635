"""Test that sizes too large for any machine give one line, before anything is built."""

import pytest

from minigpt.config import load_config
from minigpt.errors import ConfigError
from minigpt.runtime.memory import too_large
from minigpt.runtime.memory_estimate import least_memory, training_memory


@pytest.mark.parametrize(
    "setting",
    [
        "train.batch_size", "train.micro_batch_size", "model.embed_dim", "model.num_heads", "model.head_dim",
        "model.max_seq_len", "model.num_layers", "model.ff_dim", "model.bigrams", "model.vocab_size", "lora.rank",
        "tokenizer.vocab_size", "data.stories_count", "generation.num_beams", "generation.best_of",
        "generation.num_samples",
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [1e9, 10**15, 10**30])
def test_every_size_has_a_limit(setting: str, size: float) -> None:
    with pytest.raises(ConfigError, match=setting.split(".")[1]):
        load_config(None, {setting: size})


def test_least_memory_is_less_than_the_estimate_and_takes_no_time() -> None:
    config = load_config(None, {"model.vocab_size": 4096, "model.num_layers": 6}).model
    weights, rows = least_memory(config, 8)
    estimate = training_memory(config, 8)
    assert weights == estimate.weights + estimate.gradients and rows < estimate.activations
    huge = load_config(None, {"model.vocab_size": 64, "model.num_layers": 1000, "model.embed_dim": 2**24}).model
    assert "this machine has" in str(too_large(least_memory(huge, 1)[0], "the weights"))
    assert too_large(1000, "the weights") is None


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(?R)", "calls itself"),
        ("(a)(?1)", "calls itself or a group"),
        ("(?P<n>a(?&n)?b)", "calls itself or a group"),
        ("a{1000000000}", "too large"),
        ("(a{60000}){60000}", "too large"),
        ("((((a{99}){99}){99}){99})", "too large"),
        ("a" * 1001, "too large"),
        ("a*", "matches the empty text"),
        ("(", "is not a regular expression"),
    ],
)
def test_expressions_that_could_take_all_memory_are_refused(pattern: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {"generation.stop_regex": pattern})


def test_usual_expressions_stay() -> None:
    for pattern in (r"\d{4}-\d{2}-\d{2}", r"(?i)the end", r"\u1234[a-z0-9]{2,50}\n\n", r"(?<=\.)\s*\n"):
        assert load_config(None, {"generation.stop_regex": pattern}).generation.stop_regex == pattern


def test_an_expression_that_takes_for_ever_on_a_text_is_one_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from minigpt.errors import GenerationError
    from minigpt.generation.text import stops

    monkeypatch.setattr(stops, "SECONDS", 0.1)
    found = stops.Stops(load_config(None, {"generation.stop_regex": "x(a|a)*y"}).generation)
    with pytest.raises(GenerationError, match="make it simpler"):
        found.push("x" + "a" * 40 + "z")
