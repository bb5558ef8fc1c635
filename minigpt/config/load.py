"""Merge defaults, recipe and command line as plain dicts, and validate once, so that all mistakes are listed together.

The command line overrides the recipe, and the recipe overrides the defaults.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from minigpt.config.rates import with_one_rate
from minigpt.config.section import MOST_SIZE
from minigpt.config.tree import ModelConfig, OptimizerConfig, RunConfig, TokenizerConfig
from minigpt.config.yaml_text import dump_yaml, parse_yaml, read_yaml
from minigpt.errors import ConfigError, nearest
from minigpt.files import expand_home

Tree = dict[str, Any]

SWITCH_VALUES = frozenset("true false yes no on off 1 0".split())
"""Words after a switch that are its value, not the next argument."""
_CHOICES = {"optimizer.kind": OptimizerConfig, "model.shape": ModelConfig, "tokenizer.kind": TokenizerConfig}
"""Settings that others in their section follow from."""
_RATES = ("learning_rate", "adamw_ratio")
_RECIPE_DIRS = (
    Path(__file__).parent.parent / "recipes",  # in an installed wheel
    Path(__file__).parent.parent.parent / "recipes",  # in a checkout
)


def recipes() -> dict[str, Path]:
    """The recipes that come with minigpt, by name."""
    return {path.stem: path for folder in _RECIPE_DIRS for path in sorted(folder.glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """The path of a recipe: `name` is a file, or a shipped recipe's name. Raises ConfigError with the nearest name."""
    path = Path(expand_home(name))
    try:
        if path.is_file():
            return path
    except OSError as error:  # a name of 300 letters, or no permission
        raise ConfigError(f"{name}: cannot be read ({error.strerror})") from None
    shipped = recipes()
    stem = path.name.removesuffix(".yaml")  # not .stem: "tiny-6.7m" has a dot of its own
    if stem in shipped and path.parent in (Path(), Path("recipes")):
        return shipped[stem]
    raise ConfigError(f"no such recipe: {name}; {nearest(stem, shipped)}")


def read_recipe(path: Path) -> Tree:
    """The sections in a recipe file, not yet checked. Raises ConfigError if the file is not a mapping."""
    tree = read_yaml(path)
    if not isinstance(tree, dict | None):
        raise ConfigError(f"{path}: a recipe is a mapping of sections, not {type(tree).__name__}")
    tree = tree or {}
    optimizer, model = tree.get("optimizer"), tree.get("model")
    if not isinstance(optimizer, dict):  # nothing to translate, or a mistake that `validate` reports
        return tree
    width = model.get("embed_dim") if isinstance(model, dict) else None
    width = width if isinstance(width, int) and 0 < width < MOST_SIZE else ModelConfig().embed_dim
    return tree | {"optimizer": with_one_rate(optimizer, width)}


def recipe_settings(recipe: str | None, flags: Mapping[str, Any] | None = None) -> Tree:
    """A recipe's settings, like {"train.max_steps": 10}, without those that do not fit the flags (see `_for_flags`).

    {} for None. Raises ConfigError.
    """
    tree = _for_flags(read_recipe(find_recipe(recipe)), flags or {}) if recipe else {}
    if wrong := [f"{section}: holds settings, so it cannot be {part!r}" for section, part in tree.items()
                 if not isinstance(part, dict)]:  # fmt: skip
        raise ConfigError(wrong)
    return {f"{section}.{name}": value for section, part in tree.items() for name, value in part.items()}


def load_config(recipe: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> RunConfig:
    """The resolved config: defaults, then the recipe, then overrides.

    Args:
        recipe: path of a YAML file, or the name of a shipped recipe; None for the defaults.
        overrides: dotted paths to values, {"train.max_steps": 10}.

    Raises:
        ConfigError: lists every mistake with its path, and the nearest valid name.
    """
    tree: Tree = {}
    if recipe is not None:
        tree = _for_flags(read_recipe(find_recipe(str(recipe))), overrides or {})
    for path_, value in (overrides or {}).items():
        section, _, field = path_.partition(".")
        branch = tree.get(section)
        tree[section] = {**(branch if isinstance(branch, dict) else {}), field: value}
    return validate(tree)


def _for_flags(tree: Tree, flags: Mapping[str, Any]) -> Tree:
    """The recipe without settings that follow from one that a flag changes. A run's config.yaml holds all of these.

    A rate is right for one kind of optimizer only; a shape sets the norm and more; a word tokenizer takes all words;
    the text and the tokenizer set the number of ids.
    """
    for path, section in _CHOICES.items():
        part, name = path.split(".")
        own = tree.get(part)
        if not isinstance(own, dict) or flags.get(path) is None:
            continue
        old = own.get(name, section.model_fields[name].default)
        if old != flags[path]:
            implied = _implied(section, {name: old})
            kept = {key: value for key, value in own.items() if key not in _RATES and implied.get(key, ...) != value}
            tree = tree | {part: kept}
    model = tree.get("model")
    if isinstance(model, dict) and any(path.startswith(("data.", "tokenizer.")) for path in flags):
        tree = tree | {"model": {name: value for name, value in model.items() if name != "vocab_size"}}
    return tree


def _implied(section: type[BaseModel], choice: Tree) -> Tree:
    """The fields of a section when only this choice is made; {} if it is not a choice."""
    try:
        return section.model_validate(choice).model_dump()
    except ValidationError:  # the flag replaces it
        return {}


def validate(tree: Tree) -> RunConfig:
    """The typed config of a plain tree. Raises ConfigError with all mistakes at once."""
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError([_explain(item) for item in error.errors()]) from None


def _explain(item: Any) -> str:
    """One pydantic error as "train.bathc_size: no such setting; did you mean batch_size?"."""
    names = [str(part) for part in item["loc"] if not str(part).startswith("function-")]
    path, kind = ".".join(names), item["type"]
    if kind == "extra_forbidden":
        return f"{path}: no such setting; {_nearest_setting(names)}"
    message = item["msg"].removeprefix("Value error, ").partition(", unable to parse")[0]
    if kind == "float_parsing" and names[-1].endswith(("minutes", "seconds")):
        return f"{path}: give {names[-1].split('_')[-1]} as a number, not {item['input']!r}"
    if kind == "model_type":
        given = "empty" if item["input"] is None else repr(item["input"])
        return f"{path}: holds settings, so it cannot be {given}; write settings below it, or leave it out"
    if kind == "value_error":
        return f"{path}: {message}"
    if kind == "literal_error":
        choices = [choice.strip("' ") for choice in item["ctx"]["expected"].replace(" or ", ", ").split(",")]
        return f"{path}: {item['input']!r} is not a choice; {nearest(str(item['input']), choices)}"
    return f"{path}: {message[0].lower() + message[1:]}, not {item['input']!r}"


def _nearest_setting(names: list[str]) -> str:
    """The hint for an unknown name: a setting with that name in another section, else the nearest in its own."""
    sections = {name: field.default for name, field in RunConfig.model_fields.items()}
    if len(names) == 1:
        return nearest(names[0], sections)
    homes = [name for name, section in sections.items() if names[-1] in type(section).model_fields]
    if homes:
        return f"did you mean {homes[0]}.{names[-1]}?"
    return nearest(names[-1], type(sections[names[0]]).model_fields)


def split_flags(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Take the config flags out of a command line.

    split_flags(["my.txt", "--train.max-steps", "10", "--json"])
        -> ({"train.max_steps": 10}, ["my.txt", "--json"])

    `--a.b value` and `--a.b=value` both work, with `-` or `_`; a bare `--a.b` is true.
    Values are read as YAML. Raises ConfigError for a flag without its value.
    """
    flags, rest = flag_texts(argv)
    return {path: flag_value(flag, path, text) for flag, path, text in flags}, rest


def flag_texts(argv: Sequence[str]) -> tuple[list[tuple[str, str, str]], list[str]]:
    """(flag, dotted path, value as it was written) for each config flag, and the other words.

    If a flag is given twice, the last one counts. Raises ConfigError for a flag without its value.
    """
    flags: list[tuple[str, str, str]] = []
    rest: list[str] = []
    queue = list(argv)
    while queue:
        word = queue.pop(0)
        if word == "--":  # all words after it are positional
            rest += [word, *queue]
            break
        if not re.match(r"--[A-Za-z_-]+\.[A-Za-z]", word):
            rest.append(word)
            continue
        flag, equals, text = word.partition("=")
        path = flag[2:].replace("-", "_")
        named = re.sub(r"(^|\.)no_", r"\1", path)
        if named != path and _is_bool(named):
            raise ConfigError(f"no such option: {flag}; write --{named.replace('_', '-')} false")
        if not equals:
            if _is_bool(path) and (not queue or not set(queue[0].lower().split(",")) <= SWITCH_VALUES):
                text = "true"
            elif not queue or queue[0].startswith("--"):
                raise ConfigError(f"{flag}: needs a value; write {flag} VALUE")
            else:
                text = queue.pop(0)
        flags.append((flag, path, text))
    return flags, rest


def flag_value(flag: str, path: str, text: str) -> Any:
    """The value of a flag: the text itself if the setting is a text, else read as YAML. Raises ConfigError.

    A setting of several texts takes one as it is, such as User: or *.bias, unless it begins with a bracket or a quote.
    """
    field = _field(path)
    kind = None if field is None else field.annotation
    one = kind == tuple[str, ...] and text[:1] not in ("[", '"', "'")
    is_text = kind in (str, str | None) and text != "null"
    return text if is_text or one else parse_yaml(text, flag)


def _field(path: str) -> FieldInfo | None:
    section, _, name = path.partition(".")
    parent = RunConfig.model_fields.get(section)
    if parent is None or not isinstance(parent.default, BaseModel):
        return None
    return type(parent.default).model_fields.get(name)


def _is_bool(path: str) -> bool:
    field = _field(path)
    return field is not None and field.annotation is bool


def dump_config(config: RunConfig) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal tree."""
    return dump_yaml(config.model_dump(mode="json"))


def schema() -> Tree:
    """JSON Schema of a recipe, for editors."""
    return RunConfig.model_json_schema()
