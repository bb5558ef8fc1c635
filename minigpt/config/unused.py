"""Find the settings that a person wrote and that have no effect beside the others, so that a line can say so.

It is not an error: a sweep over several kinds of schedules may set a field that only one kind uses.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from minigpt.config.generation import GenerationConfig
from minigpt.config.load import find_recipe, recipe_settings, recipes
from minigpt.config.tree import RunConfig, TokenizerConfig
from minigpt.layout import CONFIG

_NEEDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "model.rope_theta": ("model.position", ("rope",)),
    "tokenizer.vocab_size": ("tokenizer.kind", ("bpe", "word")),
    "tokenizer.pattern": ("tokenizer.kind", ("bpe",)),
    "tokenizer.unknown": ("tokenizer.kind", ("char", "auto")),
    "tokenizer.max_train_bytes": ("tokenizer.kind", ("bpe",)),
    "data.stories_count": ("data.source", ("stories",)),
    "optimizer.adamw_ratio": ("optimizer.kind", ("muon", "normuon")),
    "optimizer.momentum": ("optimizer.kind", ("muon", "normuon")),
    "schedule.min_lr_ratio": ("schedule.kind", ("linear", "cosine", "trapezoidal", "cosine+plateau")),
    "schedule.decay_fraction": ("schedule.kind", ("trapezoidal",)),
    "schedule.plateau_factor": ("schedule.kind", ("cosine+plateau",)),
    "schedule.plateau_patience": ("schedule.kind", ("cosine+plateau",)),
    "schedule.plateau_max_steps": ("schedule.kind", ("cosine+plateau",)),
}
"""A setting -> the setting on which it depends, and the values with which it is used."""
_ON = {"train.masked_weight": "train.masked_inputs", "recovery.spike_window": "recovery.spike_deviations"}
"""A setting -> the setting that is 0 to switch it off."""
_BEAMS = ("length_penalty", "early_stopping", "diversity_penalty")
_DRAWS = ("top_k", "top_p", "min_p", "typical_p")


def written(recipe: str | None, flags: Mapping[str, Any]) -> list[str]:
    """The dotted names of the settings in a person's recipe and in the flags. Shipped recipes do not count, nor does a
    run's config.yaml, which holds every setting.
    """
    file = find_recipe(recipe) if recipe else None
    persons = file and file.name != CONFIG and file not in recipes().values()
    return [*dict.fromkeys([*(recipe_settings(recipe, flags) if persons else ()), *flags])]


def without_effect(config: RunConfig, names: Iterable[str]) -> dict[str, str]:
    """Those of the settings (dotted names) that this config does not use, each with a line that says why.

    without_effect(load_config(None, {"tokenizer.pattern": "gpt2"}), ["tokenizer.pattern"])
        -> {"tokenizer.pattern": "tokenizer.pattern: no effect, since tokenizer.kind is char; it is for bpe"}
    """
    reasons = _reasons(config)
    return {name: f"{name}: no effect, since {reasons[name]}" for name in names if name in reasons}


def _reasons(config: RunConfig) -> dict[str, str]:
    """Every setting that this config does not use, with the reason."""
    now = {f"{section}.{field}": value for section, part in config for field, value in part}
    found = {name: f"{other} is 0" for name, other in _ON.items() if not now[other]}
    for name, (other, values) in _NEEDS.items():
        if now[other] not in values:
            found[name] = f"{other} is {now[other]}; it is for {' or '.join(values)}"
    ready = {f"tokenizer.{field}" for field in TokenizerConfig.model_fields}
    if config.finetune.base:
        found |= dict.fromkeys(ready - {"tokenizer.kind"}, "a fine-tuned model keeps its base's tokenizer")
    elif config.tokenizer.path:
        found |= dict.fromkeys(ready - {"tokenizer.path"}, "tokenizer.path names a finished tokenizer")
    if config.finetune.val_source:
        found["data.val_fraction"] = "finetune.val_source names the records to validate on"
    idle = unused_generation(config.generation)
    return found | {f"generation.{name}": why for name, why in idle.items()}


def unused_generation(settings: GenerationConfig) -> dict[str, str]:
    """The settings of generation that differ from their defaults and are not used, each with the reason."""
    found: dict[str, str] = {}
    if settings.num_beams == 1:
        found |= dict.fromkeys(_BEAMS, "num_beams is 1")
    elif settings.num_beam_groups == 1:
        found["diversity_penalty"] = "num_beam_groups is 1"
    if settings.penalty_alpha:
        found |= dict.fromkeys(("temperature", *_DRAWS[1:]), "penalty_alpha chooses among top_k tokens without a draw")
    elif settings.temperature == 0:
        found |= dict.fromkeys(_DRAWS, "temperature is 0")
    fields = GenerationConfig.model_fields
    return {name: why for name, why in found.items() if getattr(settings, name) != fields[name].default}
