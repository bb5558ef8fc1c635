"""Test that random recipes and flags give a config or one ConfigError, never another error, and never take long."""

from collections.abc import Callable

import pytest
from fuzz_watch import Watch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from minigpt.config import load_config, parse_yaml, split_flags, validate
from minigpt.config.tree import RunConfig
from minigpt.errors import UserError

SECTIONS = RunConfig.model_fields
NAMES = [f"{name}.{field}" for name, part in SECTIONS.items() for field in type(part.default).model_fields]
WORDS = [
    "1:30", "on", "true", "~", "~/x", "~nobody/x", "2024-13-45", "1e9", "-1", ".nan", "1e400", "*a", "&a 1", "!!int x",
    "{a: 1, a: 2}", "[" * 50, "(?R)", "a{99999}", "\x1b[2J", "\u202e", "9" * 30, "../x", "auto", "[[1]]", "{1: 2}",
]  # fmt: skip
values = st.one_of(st.sampled_from(WORDS), st.text(max_size=20), st.integers().map(str), st.floats().map(str))
scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=9), st.sampled_from(WORDS))
keys = st.text(max_size=5)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=6
)


def run(examples: int) -> None:
    tried = {"config": 0, "error": 0}
    watch = Watch()
    quick = settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))

    def check(make: Callable[[], object]) -> None:
        with watch.example():
            try:
                make()
                tried["config"] += 1
            except UserError as error:
                assert str(error)
                tried["error"] += 1

    @seed(22)
    @quick
    @given(st.text(st.characters() | st.sampled_from("[]{}:,-?&*!|>'\"%@`#\n ~"), max_size=60))
    def yaml_texts(text: str) -> None:
        check(lambda: parse_yaml(text))

    @seed(22)
    @quick
    @given(st.lists(st.tuples(st.sampled_from(NAMES), values), max_size=4))
    def flags(pairs: list[tuple[str, str]]) -> None:
        check(lambda: load_config(None, split_flags([f"--{name}={value}" for name, value in pairs])[0]))

    @seed(22)
    @quick
    @given(
        st.dictionaries(st.sampled_from([*SECTIONS, "x"]), trees, max_size=3),
        st.sampled_from(NAMES),
        trees,
    )
    def recipes(tree: dict, name: str, value: object) -> None:
        check(lambda: validate(tree))
        check(lambda: load_config(None, {name: value}))

    for each in (yaml_texts, flags, recipes):
        each()
    watch.end(f"config fuzz: {tried['config']:,} configs, {tried['error']:,} errors of one line, 0 tracebacks")


def test_random_recipes_and_flags_are_a_config_or_one_error() -> None:
    run(400)


@pytest.mark.slow
def test_many_random_recipes_and_flags_are_a_config_or_one_error() -> None:
    run(10_000)
