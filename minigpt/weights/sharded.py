"""Read sharded checkpoints, to which each rank wrote its own part with torch's distributed checkpoint (DCP).

    step-00000500/
        shard-00001-model-00001-of-00001.safetensors    rank 0's rows of every tensor, "part/name"
        shard-00002-...                                 rank 1's rows
        state.json, manifest.json                       as in any checkpoint

Each file says where its rows belong, so any number of processes can read them.
"""

import math
import warnings
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

PATTERN = "shard-*.safetensors"


def in_parts(directory: Path) -> bool:
    """Whether a checkpoint is sharded."""
    return any(directory.glob(PATTERN))


def read_parts(directory: Path, parts: Iterable[str]) -> dict[str, dict[str, Tensor]]:
    """Read whole tensors to the CPU, by part ("model", "ema", "optimizer") and name. Missing parts are left out.

    Raises ValueError before a tensor is made that is larger than its rows in all files.
    """
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader  # slow to import, rarely needed
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(directory))
    wanted = tuple(f"{part}/" for part in parts)
    entries = {
        name: entry
        for name, entry in reader.read_metadata().state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and name.startswith(wanted)
    }
    for name, entry in entries.items():
        if sum(math.prod(chunk.sizes) for chunk in entry.chunks) < math.prod(entry.size):  # numel() could overflow
            raise ValueError(f"the files hold only a part of {name}")
    tensors = {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # on purpose: each process reads all
        load(tensors, storage_reader=reader, no_dist=True)
    out: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, own = name.partition("/")
        out.setdefault(part, {})[own] = tensor
    return out
