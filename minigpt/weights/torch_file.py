"""Read what torch.save wrote, without running anything in it: the one place where minigpt opens a pickle.

torch's `weights_only` reader builds tensors, numbers, texts, dicts and lists, and refuses all else. What it leaves open
is closed here: a file whose parts are compressed, or whose tensors show the same bytes many times, would need far more
memory than its size.
"""

import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import CheckpointError

MOST_PICKLE = 64 << 20
"""Bytes of the part that says which tensors there are; GPT-2 XL's has 60 kB."""


def is_torch_file(path: Path) -> bool:
    """Whether it may be read here: torch writes zip files since version 1.6."""
    return path.is_file() and zipfile.is_zipfile(path)


def read_torch(path: Path) -> Any:
    """What was saved; its tensors stay on the disk until they are used.

    Raises CheckpointError: damaged, or it holds more than tensors and plain values.
    """
    try:
        with zipfile.ZipFile(path) as held:
            parts = held.infolist()
    except (zipfile.BadZipFile, OSError, ValueError):
        raise CheckpointError(f"{path}: is not a whole file of torch.save; copy it again") from None
    size = path.stat().st_size
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise CheckpointError(f"{path}: is packed as torch never packs; save it again with torch.save")
    if any(part.file_size > MOST_PICKLE for part in parts if part.filename.endswith("data.pkl")):
        raise CheckpointError(f"{path}: lists more than a model holds; save the model's state_dict alone")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001  of a damaged or hostile file torch's reader says so in many classes
        raise CheckpointError(
            f"{path}: is damaged, or holds more than tensors and plain values, which could run code; minigpt does not "
            "read it. In the program that wrote it, save the state_dict and the settings alone"
        ) from None


def plain_weights(found: Any, path: Path) -> dict[str, Tensor]:
    """A state dict, without the prefix that torch.compile puts before names.

    Raises CheckpointError: it is none, or its tensors are larger than the file.
    """
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: holds no weights by name; save the model's state_dict")
    weights: dict[str, Tensor] = {}
    total = 0
    for name, tensor in found.items():
        plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path}: {str(name)[:60]} is not a plain tensor; save the model's state_dict")
        weights[name.removeprefix("_orig_mod.")] = tensor
        total += tensor.numel() * tensor.element_size()
    if total > 2 * path.stat().st_size:  # a tied head is there twice
        raise CheckpointError(f"{path}: its tensors are larger than the file; save copies of them")
    return weights
