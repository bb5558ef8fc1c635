"""Convert checkpoints of nanoGPT (Karpathy), ckpt.pt: GPT-2's names, matrices not transposed, nanoGPT's settings.

nanoGPT computes GELU exactly (not by tanh), pads the vocabulary to 50304, and may have no biases. Its successor
nanochat limits its logits with a tanh and adds embeddings to values. minigpt has no setting for that, so it refuses
nanochat's checkpoints.
"""

from pathlib import Path
from typing import Any

from torch import Tensor

from minigpt.config import ModelConfig, validate
from minigpt.errors import CheckpointError, ConfigError
from minigpt.weights.huggingface import weights_from_hf
from minigpt.weights.huggingface_config import MOST_POSITIONS
from minigpt.weights.torch_file import plain_weights

_ARGUMENTS = {
    "n_layer": ("num_layers", int),
    "n_head": ("num_heads", int),
    "n_embd": ("embed_dim", int),
    "block_size": ("max_seq_len", int),
    "vocab_size": ("vocab_size", int),
    "bias": ("bias", bool),
    "dropout": ("dropout", (float, int)),
}


def from_nanogpt(saved: Any, path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Convert the object that nanoGPT's train.py saved to (shape, state dict). Raises CheckpointError."""
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: has no model that minigpt can read; give a checkpoint of nanoGPT (ckpt.pt)")
    if _is_nanochat(saved):
        raise CheckpointError(
            f"{path}: is a model of nanochat, which minigpt cannot compute: it limits its logits (15 tanh(x / 15)), "
            "and newer ones add embeddings to values; minigpt has no setting for that"
        )
    given = saved.get("model_args")
    if not isinstance(given, dict) or "model" not in saved:
        raise CheckpointError(f"{path}: lacks model_args and model, which nanoGPT's ckpt.pt has; give that file")
    fields: dict[str, Any] = {"shape": "gpt2", "activation": "gelu", "bias": True, "dropout": 0.0}
    for name, (ours, kind) in _ARGUMENTS.items():
        if name not in given and ours in fields:
            continue
        value = given.get(name)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CheckpointError(
                f"{path}: model_args.{name} is {str(value)[:60]}; it is not a whole nanoGPT checkpoint"
            )
        fields[ours] = value
    if unknown := sorted(str(name)[:60] for name in given.keys() - _ARGUMENTS.keys()):
        raise CheckpointError(f"{path}: minigpt cannot compute a model with model_args.{unknown[0]}")
    try:
        if fields["max_seq_len"] > MOST_POSITIONS:
            raise CheckpointError(f"a context of {fields['max_seq_len']} is more than {MOST_POSITIONS}")
        config = validate({"model": fields}).model
        weights = plain_weights(saved["model"], path)
        return config, weights_from_hf(config, weights, where="model_args", transposed=False)
    except ConfigError as error:
        raise CheckpointError(f"{path}: model_args: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(error).startswith(str(path)) else f"{path}: {error}") from None


def _is_nanochat(saved: dict[Any, Any]) -> bool:
    """Whether this is nanochat's model_000123.pt: a state dict without biases, with separate q, k and v."""
    return any(isinstance(name, str) and name.endswith("h.0.attn.c_q.weight") for name in saved)
