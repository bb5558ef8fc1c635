"""Read the weights of a run, a checkpoint or a Hugging Face directory."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError
from minigpt.weights import checkpoint
from minigpt.weights.huggingface import config_from_hf, weights_from_hf
from minigpt.weights.quantized import unpack_all


def read_pretrained(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """(shape, state dict); of a quantised run the fp32 numbers that its integers stand for.

    Raises CheckpointError: nothing there, damaged, or another architecture.
    """
    if is_huggingface(path):
        return _read_huggingface(path)
    loaded = checkpoint.load(path)
    if (loaded.path / "adapter.safetensors").is_file():
        raise CheckpointError(
            f"{loaded.path}: holds an adapter, not a model; minigpt.load_run loads it on its base, and "
            "`minigpt finetune --merge RUN --out DIR` writes a whole model"
        )
    try:
        config, weights = ModelConfig(**(loaded.state.model or {})), loaded.weights
    except (KeyError, TypeError, ValueError):
        raise CheckpointError(
            f"{loaded.path}: state.json describes no model we know; use the minigpt it is from"
        ) from None
    try:
        return config, unpack_all(weights)
    except ValueError as error:
        raise CheckpointError(f"{loaded.path}: its packed weights do not fit together ({error})") from None


def is_huggingface(path: Path) -> bool:
    """Whether the directory looks like an exported Hugging Face model."""
    return (path / "config.json").is_file() and any(path.glob("*.safetensors"))


def _read_huggingface(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    try:
        config = config_from_hf(json.loads((path / "config.json").read_text(encoding="utf-8")))
        weights = {
            name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()
        }
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a Hugging Face model we can read ({error})") from None
    return config, weights_from_hf(config, {name: tensor.float() for name, tensor in weights.items()})
