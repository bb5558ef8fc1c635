"""Read files of torch.save safely, without running code from them. Only this module opens pickles.

torch's `weights_only` reader accepts only tensors, numbers, texts, dicts and lists. This module adds checks against
files that need far more memory than their size: those with compressed parts, with many tensors over the same bytes, or
with calls that make bytes.
"""

import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minigpt.errors import CheckpointError

MOST_PICKLE = 64 << 20
"""Largest size, in bytes, of the part that lists the tensors; GPT-2 XL's has 60 kB."""

_GROWS = re.compile(rb"\n(?:bytearray|encode)\n")
"""Functions that torch's reader calls for a file, and that make as many bytes as the file says."""


def is_torch_file(path: Path) -> bool:
    """Whether the file looks like one of torch.save, which writes zip files since torch 1.6."""
    return path.is_file() and zipfile.is_zipfile(path)


def read_torch(path: Path) -> Any:
    """Read the saved object. Its tensors stay on the disk until they are used.

    Raises CheckpointError if the file is damaged, or holds more than tensors and plain values.
    """
    try:
        size = path.stat().st_size
        with zipfile.ZipFile(path) as held:
            parts = held.infolist()
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(map(_size, parts)) > size:
                raise CheckpointError(f"{path}: is not packed in the way of torch.save; save it again with torch.save")
            lists = [part for part in parts if part.filename.lower().endswith("data.pkl")]  # torch takes any case
            if any(_size(part) > MOST_PICKLE for part in lists):
                raise CheckpointError(f"{path}: lists more than a model has; save only the model's state_dict")
            grows = any(_GROWS.search(held.read(part)) for part in lists)
    except (zipfile.BadZipFile, EOFError, RuntimeError, OSError, ValueError):  # RuntimeError: encrypted, or too new
        raise CheckpointError(f"{path}: is not a whole file of torch.save; copy it again") from None
    try:
        if grows:
            raise ValueError
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # noqa: BLE001  torch's reader raises many classes for damaged or hostile files
        raise CheckpointError(
            f"{path}: is damaged, or holds more than tensors and plain values, which could run code; minigpt does not "
            "read it. In the program that wrote it, save only the state_dict and the settings"
        ) from None


def _size(part: zipfile.ZipInfo) -> int:
    return part.file_size


def plain_weights(found: Any, path: Path) -> dict[str, Tensor]:
    """Check a state dict, and remove the prefix that torch.compile puts before names.

    Raises CheckpointError if it is not a state dict, or if its tensors are larger than the file.
    """
    if not isinstance(found, dict) or not found:
        raise CheckpointError(f"{path}: has no named weights; save the model's state_dict")
    weights: dict[str, Tensor] = {}
    total = 0
    for name, tensor in found.items():
        plain = isinstance(name, str) and isinstance(tensor, Tensor) and tensor.layout == torch.strided
        if not plain or tensor.device.type != "cpu" or tensor.is_quantized:
            raise CheckpointError(f"{path}: {str(name)[:60]} is not a plain tensor; save the model's state_dict")
        weights[name.removeprefix("_orig_mod.")] = tensor
        total += tensor.numel() * tensor.element_size()
    if total > 2 * path.stat().st_size:  # twice: a tied head is counted twice
        raise CheckpointError(f"{path}: its tensors are larger than the file; save copies of them")
    return weights
