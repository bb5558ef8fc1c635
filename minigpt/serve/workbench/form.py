"""Give the settings of a new run as a form: the config's own JSON Schema, and the command's messages about values.

Values are texts, as they are written after a flag. No path can be set here: a request can only name listed texts.
"""

from collections.abc import Mapping
from typing import Any

from minigpt.config import load_config, schema
from minigpt.config.load import flag_value
from minigpt.errors import ConfigError

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


def wrong(settings: Mapping[str, str]) -> list[str]:
    """The command's messages about wrong settings, one line each: "train.max_steps: ..."."""
    try:
        pairs = zip(flags(settings), settings.items(), strict=True)
        load_config(None, {name: flag_value(word.partition("=")[0], name, text) for word, (name, text) in pairs})
    except ConfigError as error:
        return error.problems
    return []
