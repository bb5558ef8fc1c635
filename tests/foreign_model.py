"""Make small Hugging Face models, as transformers makes and writes them, and twins of ours."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt.model import GPT
from minigpt.weights.huggingface import config_to_hf, weights_to_hf

SMALL = {
    "gpt2": {"vocab_size": 70, "n_positions": 16, "n_embd": 8, "n_layer": 2, "n_head": 2},
    "qwen3": {
        "vocab_size": 70, "max_position_embeddings": 16, "hidden_size": 8, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "intermediate_size": 12,
    },
}  # fmt: skip
SMALL["llama"] = SMALL["qwen3"]


def make(path: Path, kind: str, **fields: object) -> Path:
    """A directory of a model with random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **SMALL[kind] | fields, initializer_range=0.3)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def twin(model: GPT, **changed: object) -> Any:
    """The same weights in transformers; `changed` are fields of its config.json."""
    transformers = pytest.importorskip("transformers")
    fields = config_to_hf(model.config) | changed
    kind = {"gpt2": transformers.GPT2LMHeadModel, "qwen3": transformers.Qwen3ForCausalLM}[fields["model_type"]]
    other = kind(kind.config_class(**fields)).eval()
    missing, unknown = other.load_state_dict(weights_to_hf(model.config, model.weights()), strict=False)
    assert not unknown and set(missing) <= {"lm_head.weight"}
    other.tie_weights()
    return other
