"""Build the Hugging Face model most similar to ours, GPT2LMHeadModel or Qwen3ForCausalLM, as a rival in benchmarks."""

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from torch import nn

from minigpt.config import ModelConfig
from minigpt.config.tree import SHAPES
from minigpt.errors import UserError
from minigpt.weights.huggingface import config_to_hf

_CLASSES = {"gpt2": "GPT2LMHeadModel", "modern": "Qwen3ForCausalLM"}
_FORCED = {
    "gpt2": {"num_kv_heads": None, "head_dim": None, "tie_embeddings": True},  # GPT-2 has no other values
    "modern": {},
}
_COMPARED = (
    "norm", "position", "activation", "qk_norm", "bias", "tie_embeddings", "kv_heads", "head_size", "hidden_dim",
)  # fmt: skip


@dataclass(frozen=True)
class Counterpart:
    """The model of transformers to compare with: its class, its config.json, and its differences from our model."""

    name: str
    fields: dict[str, Any]
    differences: tuple[str, ...]

    @property
    def notes(self) -> list[str]:
        """Sentences for the report; none if the rival has no differences."""
        if not self.differences:
            return []
        return [f"no Hugging Face model is the same; the nearest, {self.name}, has {', '.join(self.differences)}"]


def find_counterpart(config: ModelConfig) -> Counterpart:
    """Call `nearest_counterpart`, but raise UserError if transformers is not installed, before anything slow begins."""
    if find_spec("transformers") is None:
        raise UserError("--vs hf needs Hugging Face transformers, which is not installed: pip install transformers")
    return nearest_counterpart(config)


def nearest_counterpart(config: ModelConfig) -> Counterpart:
    """The architecture that differs from ours in the fewest fields; GPT-2 if both differ in the same number.

    Raises:
        UserError: neither architecture can have this shape.
    """
    counterparts = [counterpart for name in _CLASSES if (counterpart := _counterpart(config, name)) is not None]
    if not counterparts:
        raise UserError("neither GPT-2 nor Qwen3 can have this shape; leave out --vs hf")
    return min(counterparts, key=lambda counterpart: len(counterpart.differences))


def _counterpart(config: ModelConfig, name: str) -> Counterpart | None:
    fields = SHAPES[name] | {"tie_embeddings": config.tie_embeddings, "norm_eps": config.norm_eps} | _FORCED[name]
    try:
        other = ModelConfig(**(config.model_dump() | {"ff_dim": config.hidden_dim} | fields))
    except ValueError:  # rope on an odd head size, heads that do not divide the width
        return None
    differences = [
        f"{field} {getattr(other, field)}" for field in _COMPARED if getattr(config, field) != getattr(other, field)
    ]
    if name == "modern" and (config.drops("input")[0] or config.drops("block")[0]):
        differences.append("dropout only in attention")
    ours = ("word_dropout", "qkv_dropout", "hidden_dropout", "output_dropout", "locked_dropout")
    differences += [f"no {field}" for field in ours if getattr(config, field)]
    return Counterpart(_CLASSES[name], config_to_hf(other), tuple(differences))


def build_counterpart(counterpart: Counterpart) -> nn.Module:
    """Build the rival in fp32 on the CPU, with random weights. Imports transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.utils import logging

    logging.set_verbosity_error()  # hide its advice on generation
    fields = {key: value for key, value in counterpart.fields.items() if key not in ("model_type", "architectures")}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(counterpart.fields["model_type"], **fields))
