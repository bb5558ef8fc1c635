"""The typed configuration: its sections, and how recipes and flags are read into it."""

from minigpt.config.generation import GenerationConfig
from minigpt.config.load import (
    dump_config,
    find_recipe,
    flag_texts,
    flag_value,
    load_config,
    recipe_settings,
    recipes,
    schema,
    split_flags,
    validate,
)
from minigpt.config.tree import (
    LENGTHS,
    DataConfig,
    ModelConfig,
    OptimizerConfig,
    RunConfig,
    ScheduleConfig,
    TokenizerConfig,
    TrainConfig,
)
from minigpt.config.yaml_text import comment, dump_yaml, parse_yaml, read_yaml

__all__ = [
    "LENGTHS",
    "DataConfig",
    "GenerationConfig",
    "ModelConfig",
    "OptimizerConfig",
    "RunConfig",
    "ScheduleConfig",
    "TokenizerConfig",
    "TrainConfig",
    "comment",
    "dump_config",
    "dump_yaml",
    "find_recipe",
    "flag_texts",
    "flag_value",
    "load_config",
    "parse_yaml",
    "read_yaml",
    "recipe_settings",
    "recipes",
    "schema",
    "split_flags",
    "validate",
]
