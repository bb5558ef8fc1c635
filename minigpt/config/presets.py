"""Save and load settings of generation by name, in one YAML file in the user's home."""

import os
from pathlib import Path
from typing import Any

from minigpt.config.yaml_text import dump_yaml, read_yaml
from minigpt.errors import ConfigError, nearest
from minigpt.files import expand_home, write_text


def presets_file() -> Path:
    """The path of generation.yaml, in $MINIGPT_CONFIG or else in ~/.config/minigpt."""
    text = os.environ.get("MINIGPT_CONFIG") or "~/.config/minigpt"
    return Path(expand_home(text, "name a folder in full with MINIGPT_CONFIG")) / "generation.yaml"


def read_presets() -> dict[str, dict[str, Any]]:
    """All presets, by name. Raises ConfigError if the file does not map names to settings."""
    file = presets_file()
    if not file.is_file():
        return {}
    tree = read_yaml(file) or {}
    if not isinstance(tree, dict) or not all(isinstance(value, dict) for value in tree.values()):
        raise ConfigError(f"{file}: must map names to settings, like `bold: {{temperature: 1.1}}`")
    return {str(name): settings for name, settings in tree.items()}


def load_preset(name: str) -> dict[str, Any]:
    """The settings of the preset with this name. Raises ConfigError with the nearest name."""
    presets = read_presets()
    if name not in presets:
        hint = nearest(name, presets) if presets else "save one with minigpt generate --save-preset NAME"
        raise ConfigError(f"no preset {name} in {presets_file()}; {hint}")
    return presets[name]


def save_preset(name: str, settings: dict[str, Any]) -> Path:
    """Save the settings under the name; an older preset with this name is replaced. Raises StorageError."""
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}
    file = presets_file()
    text = dump_yaml(read_presets() | {name: plain})
    write_text(file, text, "name another folder with MINIGPT_CONFIG", parents=True)
    return file
