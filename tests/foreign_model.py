"""Make small Hugging Face models, as transformers makes and writes them."""

from pathlib import Path

import torch

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
