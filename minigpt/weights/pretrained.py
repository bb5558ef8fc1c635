"""Read the weights of a run, a checkpoint or a Hugging Face directory."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, first_line
from minigpt.weights import checkpoint
from minigpt.weights.huggingface import config_from_hf, narrowed, weights_from_hf
from minigpt.weights.quantized import unpack_all

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def read_pretrained(path: Path, vocab_size: int | None = None) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """(shape, state dict); of a quantised run the fp32 numbers that its integers stand for.

    Args:
        path: what to read.
        vocab_size: of a Hugging Face directory, the ids that there are tokens for; rows beyond them are left out.

    Raises CheckpointError: nothing there, damaged, another architecture, or a part of it that minigpt does not have.
    """
    if is_huggingface(path):
        config, weights = _read_huggingface(path)
        spare = vocab_size is not None and config.vocab_size is not None and vocab_size < config.vocab_size
        return narrowed(config, weights, vocab_size) if spare and vocab_size else (config, weights)
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
    return (path / "config.json").is_file() and any((path / name).is_file() for name in (WEIGHTS, INDEX))


def _read_huggingface(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    config = config_from_hf(_json(path / "config.json"))
    weights: dict[str, torch.Tensor] = {}
    for file in _weight_files(path):
        try:
            weights |= load_file(file)
        except (OSError, ValueError, SafetensorError) as error:
            if _is_pointer(file):
                raise CheckpointError(f"{file}: a git-lfs pointer, not the weights; run `git lfs pull` there") from None
            raise CheckpointError(f"{file}: not weights that we can read ({first_line(error)})") from None
    try:
        return config, weights_from_hf(config, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def _weight_files(path: Path) -> list[Path]:
    """model.safetensors, else the files of the index; others in the folder are not the model's."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    index = _json(path / INDEX)
    names = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{path / INDEX}: names no files; copy it again")
    files = sorted(set(names.values()))
    for name in files:
        if Path(name).name != name or not (path / name).is_file():
            raise CheckpointError(f"{path / INDEX}: names {name}, which is not in that folder; copy it there")
    return [path / name for name in files]


def _json(file: Path) -> Any:
    """The content of a JSON file. Raises CheckpointError."""
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, RecursionError):
        if _is_pointer(file):
            raise CheckpointError(f"{file}: a git-lfs pointer, not the file; run `git lfs pull` there") from None
        raise CheckpointError(f"{file}: not JSON; it is damaged: copy it again") from None


def _is_pointer(file: Path) -> bool:
    with file.open("rb") as stream:
        return stream.read(24) == b"version https://git-lfs."
