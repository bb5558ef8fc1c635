"""Write generation settings for other programs, and read theirs: generation_config.json, and the keys of a GGUF file.

transformers samples only with do_sample, and then from the 50 likeliest tokens if the file has no top_k.
"""

from collections.abc import Mapping
from typing import Any

from minigpt.config import GenerationConfig, validate
from minigpt.errors import CheckpointError, ConfigError, first_names

_SAME_NAME = ("repetition_penalty", "no_repeat_ngram_size", "min_new_tokens")
_SAMPLED = ("top_p", "min_p", "typical_p")
"""Also of the same name, but only for sampling: transformers refuses to save changed settings that mix both."""
_IN_GGUF = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p", "min_p": "min_p"}
_TRANSFORMERS = {"temperature": 1.0, "top_k": 50}
"""transformers' defaults for sampling that differ from minigpt's."""


def settings_to_hf(ours: GenerationConfig) -> dict[str, Any]:
    """The settings of generation_config.json: what differs from transformers' defaults."""
    default = GenerationConfig()
    out: dict[str, Any] = {"max_new_tokens": ours.max_new_tokens, "do_sample": ours.temperature > 0}
    names = _SAME_NAME
    if ours.temperature:
        out |= {"temperature": ours.temperature, "top_k": ours.top_k}
        names += _SAMPLED
    return out | {name: getattr(ours, name) for name in names if getattr(ours, name) != getattr(default, name)}


def settings_from_hf(found: Mapping[str, Any]) -> GenerationConfig:
    """The settings of generation_config.json that minigpt has too. Raises CheckpointError.

    Many files do not say whether to sample; then minigpt's own temperature stays.
    """
    names = ("max_new_tokens", *_SAME_NAME, *(("temperature", "top_k", *_SAMPLED) if found.get("do_sample") else ()))
    given = {name: found[name] for name in names if found.get(name) is not None}
    if found.get("do_sample"):
        given = _TRANSFORMERS | given
    elif found.get("do_sample") is False:
        given["temperature"] = 0.0
    return _checked(given, "generation_config.json")


def settings_to_gguf(ours: GenerationConfig) -> dict[str, Any]:
    """The settings that llama.cpp has too, under the keys of a GGUF file."""
    return {f"general.sampling.{theirs}": getattr(ours, name) for name, theirs in _IN_GGUF.items()}


def settings_from_gguf(found: Mapping[str, Any]) -> GenerationConfig:
    """The generation settings among the keys of a GGUF file; minigpt's own for others. Raises CheckpointError."""
    given = {name: found.get(f"general.sampling.{theirs}") for name, theirs in _IN_GGUF.items()}
    # fp32 there: 0.8 is 0.800000012
    near = {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in given.items()}
    return _checked({name: value for name, value in near.items() if value is not None}, "general.sampling")


def _checked(given: dict[str, Any], where: str) -> GenerationConfig:
    try:
        return validate({"generation": given}).generation
    except ConfigError as error:
        raise CheckpointError(f"{where}: {first_names(error.problems, '; ')}; correct it, or delete it") from None
