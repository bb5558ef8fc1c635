"""Settings of generation saved under a name, in one YAML file of the user's."""

import os
from pathlib import Path
from typing import Any

from minigpt.config.yaml_text import dump_yaml, read_yaml
from minigpt.errors import ConfigError, nearest
from minigpt.files import expand_home, write_text


def presets_file() -> Path:
    """$MINIGPT_CONFIG, else ~/.config/minigpt, holds generation.yaml."""
    return Path(expand_home(os.environ.get("MINIGPT_CONFIG") or "~/.config/minigpt")) / "generation.yaml"


def read_presets() -> dict[str, dict[str, Any]]:
    """All, by name. Raises ConfigError for a file that is not such a mapping."""
    file = presets_file()
    if not file.is_file():
        return {}
    tree = read_yaml(file) or {}
    if not isinstance(tree, dict) or not all(isinstance(value, dict) for value in tree.values()):
        raise ConfigError(f"{file}: must map names to settings, like `bold: {{temperature: 1.1}}`")
    return tree


def load_preset(name: str) -> dict[str, Any]:
    """The settings of that name. Raises ConfigError naming the nearest."""
    presets = read_presets()
    if name not in presets:
        hint = nearest(name, presets) if presets else "save one with --save-preset NAME"
        raise ConfigError(f"no preset {name} in {presets_file()}; {hint}")
    return presets[name]


def save_preset(name: str, settings: dict[str, Any]) -> Path:
    """Keep the settings under the name, in place of what it meant before. Raises StorageError."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    file = presets_file()
    text = dump_yaml(read_presets() | {name: plain})
    write_text(file, text, parents=True)
    return file
