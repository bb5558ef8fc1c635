"""Turn configs into flat tables of dotted paths, to compare them, and into words of a shell."""

import json
import shlex
from typing import Any

from minigpt.config import RunConfig, load_config
from minigpt.errors import ConfigError

Settings = dict[str, Any]


def flat(config: RunConfig) -> Settings:
    """All settings: {"train.max_steps": 2000, ...}."""
    tree = config.model_dump(mode="json")
    return {f"{section}.{field}": value for section, fields in tree.items() for field, value in fields.items()}


def essential(config: RunConfig) -> Settings:
    """The smallest set of settings that gives this config from the defaults, without the vocabulary's size.

    The vocabulary's size follows from the tokenizer. Other settings may follow from settings too: the learning rate
    from the width, the norm from the shape. A setting is left out if the config does not change without it.
    """
    defaults, target = flat(RunConfig()), flat(config.changed(model={"vocab_size": None}))
    kept = {path: value for path, value in target.items() if value != defaults[path]}
    implied = _made(kept) or {}
    kept |= {path: value for path, value in target.items() if value != implied.get(path)}
    for path in list(kept):
        fewer = {other: value for other, value in kept.items() if other != path}
        if _made(fewer) == target:
            kept = fewer
    return kept


def _made(settings: Settings) -> Settings | None:
    """All settings of the config that these settings give; None if they are not valid together."""
    try:
        return flat(load_config(None, settings))
    except ConfigError:
        return None


def as_flag(path: str, value: Any) -> tuple[str, str]:
    """The flag and the value that `split_flags` reads back: a text as it is, other values as JSON, which is also YAML.

    as_flag("train.max_steps", 10) -> ("--train.max-steps", "10"); join them by "=".
    """
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"--{path.replace('_', '-')}", text


def quoted(word: str) -> str:
    r"""Quote a word for a shell, on one line; with $'\n' (bash, zsh, ksh) if it has line ends or other control
    characters.
    """
    if word.isprintable():
        return shlex.quote(word)
    plain = {"\n": r"\n", "\t": r"\t", "'": r"\'", "\\": r"\\"}
    letters = (plain.get(char, char if char.isprintable() else f"\\U{ord(char):08x}") for char in word)
    return f"$'{''.join(letters)}'"
