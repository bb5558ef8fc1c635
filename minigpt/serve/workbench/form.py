"""Give the settings of a new run as a form: the config's own JSON Schema, and the command's messages about values.

Values are texts, as they are written after a flag. No path can be set here: a request can only name listed texts.
"""

from collections.abc import Mapping
from typing import Any

from minigpt.config import LENGTHS, load_config, schema
from minigpt.config.load import flag_value
from minigpt.config.unused import without_effect
from minigpt.errors import ConfigError
from minigpt.runs.budget.rule import LIKELY

HIDDEN = {"finetune", "lora", "logging.name"}
"""Sections of another command, and a setting that the page asks for separately."""


def form() -> dict[str, Any]:
    """{section: {"description", "properties"}}: the parts of the config's JSON Schema that a page may set."""
    document = schema()
    sections: dict[str, Any] = {}
    for name, reference in document["properties"].items():
        section = document["$defs"][reference["$ref"].rpartition("/")[2]]
        fields = {
            key: field
            for key, field in section["properties"].items()
            if not HIDDEN & {name, f"{name}.{key}"} and field.get("format") != "path"
        }
        if fields:
            sections[name] = {"description": section["description"], "properties": fields}
    return sections


def flags(settings: Mapping[str, str]) -> list[str]:
    """The settings as words of a command. Raises ConfigError for a setting that is not in the form."""
    known = {f"{section}.{key}" for section, part in form().items() for key in part["properties"]}
    if unknown := sorted(settings.keys() - known):
        raise ConfigError([f"{name}: no such setting here" for name in unknown])
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def values(settings: Mapping[str, str]) -> dict[str, Any]:
    """The settings as the command reads them. Raises ConfigError."""
    pairs = zip(flags(settings), settings.items(), strict=True)
    return {name: flag_value(word.partition("=")[0], name, text) for word, (name, text) in pairs}


def unused(settings: Mapping[str, str], budget: str) -> list[str]:
    """The command's lines about settings that have no effect. Raises ConfigError.

    The text decides which kind of tokenizer a budget chooses, so nothing is said about a tokenizer of no given kind.
    """
    own = values(settings)
    planned = bool(budget) or not own.keys() & set(LENGTHS)  # without a length, the command takes its usual budget
    lines = without_effect(load_config(None, {**LIKELY, **own} if planned else own), own)
    open_kind = planned and "tokenizer.kind" not in own
    return [line for name, line in lines.items() if not (open_kind and name.startswith("tokenizer."))]


def wrong(settings: Mapping[str, str]) -> list[str]:
    """The command's messages about wrong settings, one line each: "train.max_steps: ..."."""
    try:
        load_config(None, values(settings))
    except ConfigError as error:
        return error.problems
    return []
