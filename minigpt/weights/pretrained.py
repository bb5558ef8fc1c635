"""Read the weights of a run, a checkpoint or a Hugging Face directory."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from minigpt import tokenizers
from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import CheckpointError, TokenizerError, first_line
from minigpt.files import find, parse_json, read_text
from minigpt.layout import CHECKPOINTS, CONFIG, MANIFEST
from minigpt.weights import checkpoint
from minigpt.weights.generation_settings import settings_from_hf
from minigpt.weights.huggingface import config_from_hf, cut_vocabulary, weights_from_hf
from minigpt.weights.quantized import unpack_all

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_GENERATION = "generation_config.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_LFS = b"version https://git-lfs"


def read_pretrained(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    """Read (shape, state dict). The integers of a quantised run are converted to fp32.

    Raises CheckpointError if there is no model, it is damaged, or it has another architecture.
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
            f"{loaded.path}: not a model of this version of minigpt; use the version that wrote it"
        ) from None
    try:
        return config, unpack_all(weights)
    except ValueError as error:
        raise CheckpointError(f"{loaded.path}: its packed weights do not fit together ({error})") from None


def read_generation(path: Path) -> GenerationConfig:
    """The generation settings of a Hugging Face directory; minigpt's own if it has none. Raises CheckpointError."""
    file = path / _GENERATION
    try:
        found = _json(file) if find(file) else {}
        if not isinstance(found, dict):
            raise CheckpointError(f"{_GENERATION} is damaged (not an object); download it again, or delete it")
        return settings_from_hf(found)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror or error})") from None


def is_huggingface(path: Path) -> bool:
    """Whether this is another program's model: a directory with config.json, or with weights but no files of a run."""
    if (path / "config.json").is_file() or _is_pickle(path):
        return True
    ours = any((path / name).exists() for name in (MANIFEST, CONFIG, CHECKPOINTS)) or not path.is_dir()
    return not ours and ((path / _WHOLE).exists() or bool(_pickles(path)))


def _read_huggingface(path: Path) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    if _is_pickle(path):
        raise _pickle(path)
    try:
        files = _weight_files(path)
        config = config_from_hf(_json(path / "config.json"))
        weights: dict[str, torch.Tensor] = {}
        for file, names in files.items():
            held = _load(file)
            if names is not None and names != held.keys():
                odd = sorted(names ^ held.keys())[0]
                raise CheckpointError(f"{odd} is in only one of {_INDEX} and {file.name}; download both again")
            weights |= held
        ours = weights_from_hf(config, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    try:
        tokens = tokenizers.load(path).vocab_size
    except TokenizerError:  # reported when text is encoded; ids need no tokenizer
        return config, ours
    return cut_vocabulary(config, ours, tokens) if tokens < (config.vocab_size or 0) else (config, ours)


def _weight_files(path: Path) -> dict[Path, set[str] | None]:
    """The files of the weights, each with the names that the index lists for it. Raises CheckpointError."""
    if (path / "adapter_config.json").is_file():
        raise CheckpointError("has an adapter_config.json; minigpt cannot run this adapter, so merge it first")
    if not (path / "config.json").is_file() and (path / _WHOLE).is_file():
        raise CheckpointError("has no config.json; copy the one that belongs to the weights")
    if (path / _WHOLE).is_file():
        return {path / _WHOLE: None}
    if not (path / _INDEX).is_file():
        if found := _pickles(path):
            raise _pickle(found[0])
        raise CheckpointError(f"has neither {_WHOLE} nor {_INDEX}; download the weights too")
    index = _json(path / _INDEX)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not table:
        raise CheckpointError(f"{_INDEX} has no weight_map; download it again")
    for file in table.values():
        if not isinstance(file, str) or Path(file).name != file or not file.isprintable():
            raise CheckpointError(f"{_INDEX}: {file!r} is not a file of this folder; download it again")
    return {path / file: {name for name in table if table[name] == file} for file in dict.fromkeys(table.values())}


def _load(file: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a safetensors file. Raises CheckpointError, OSError."""
    with file.open("rb") as opened:
        if opened.read(len(_LFS)) == _LFS:
            raise CheckpointError(f"{file.name} is a git-lfs pointer, not the weights; get them with `git lfs pull`")
    try:
        return load_file(file)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:  # TypeError: a size of 2^63
        raise CheckpointError(f"{file.name} is damaged ({first_line(error)}); download it again") from None


def _json(file: Path) -> Any:
    """Read a JSON file. Raises CheckpointError, OSError."""
    try:
        return parse_json(read_text(file))
    except ValueError as error:
        raise CheckpointError(f"{file.name} is damaged ({first_line(error)}); download it again") from None


def _is_pickle(path: Path) -> bool:
    return path.suffix in _PICKLES and not path.is_dir()


def _pickles(path: Path) -> list[Path]:
    return sorted(filter(_is_pickle, path.iterdir())) if path.is_dir() else []


def _pickle(file: Path) -> CheckpointError:
    how = (
        "transformers: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW)"
        if file.name.startswith("pytorch_model")
        else "torch.load it, and safetensors.torch.save_file its weights as model.safetensors next to a config.json"
    )
    return CheckpointError(
        f"{file.name} is a pickle, which can run any code, so minigpt does not open it; if you trust it, "
        f"convert it to safetensors ({how})"
    )
