"""Read models of llama2.c (Karpathy), such as stories15M.bin: a header of integers, then fp32 weights in fixed order.

    version 0   7 numbers (width, hidden, layers, heads, key/value heads, vocabulary, context), then the weights; a
                negative vocabulary means that the head is not tied to the embedding
    version 1   "ak42", 1, the 7 numbers, one byte (whether the head is tied), zeros up to byte 256, weights

Only the length shows whether a file is complete, so it must match exactly. llama2.c rotates neighbouring pairs
(2 i, 2 i + 1); minigpt rotates halves (i, i + D/2), so rows are reordered.
"""

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minigpt.config import ModelConfig, validate
from minigpt.errors import CheckpointError, ConfigError
from minigpt.weights.huggingface import halves, weights_from_hf
from minigpt.weights.huggingface_config import MOST_POSITIONS

_MAGIC = 0x616B3432
_HEADER = struct.Struct("<7i")
_LONG_HEADER = 256


def from_llama2c(path: Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Read (shape, state dict). Raises CheckpointError (not such a file, damaged, or quantised) or OSError."""
    with path.open("rb") as file:
        head = file.read(_LONG_HEADER)
    start = struct.unpack_from("<2I", head) if len(head) >= 8 else (0, 0)
    version = start[1] if start[0] == _MAGIC else 0
    if version > 1:
        raise CheckpointError(f"{path}: is version {version} of llama2.c's files; export it as version 0 or 1 (fp32)")
    if len(head) < (_LONG_HEADER if version else _HEADER.size):
        raise CheckpointError(f"{path}: is not a model of llama2.c")
    width, hidden, layers, heads, kv_heads, vocabulary, context = _HEADER.unpack_from(head, 8 if version else 0)
    tied = bool(head[8 + _HEADER.size]) if version else vocabulary > 0
    numbers = (width, hidden, layers, heads, kv_heads, abs(vocabulary), context)
    if min(numbers) <= 0 or context > MOST_POSITIONS or width % heads:
        raise CheckpointError(f"{path}: is not a model of llama2.c: its header says {numbers}")
    fields = {"shape": "modern", "qk_norm": False, "norm_eps": 1e-5, "vocab_size": abs(vocabulary)}
    fields |= {"embed_dim": width, "ff_dim": hidden, "num_layers": layers, "num_heads": heads, "num_kv_heads": kv_heads}
    try:
        config = validate({"model": fields | {"max_seq_len": context, "tie_embeddings": tied}}).model
    except ConfigError as error:
        raise CheckpointError(f"{path}: is not a model of llama2.c that minigpt can compute: {error}") from None
    order = _order(config, version)
    begin, size = (_LONG_HEADER if version else _HEADER.size), path.stat().st_size
    if size != begin + 4 * sum(math.prod(shape) for _, shape in order):
        raise CheckpointError(f"{path}: does not have the length given in its header; download it again")
    data = np.memmap(path, "<f4", "r", begin)
    weights: dict[str, Tensor] = {}
    place = 0
    for name, shape in order:
        stored = torch.from_numpy(np.array(data[place : place + math.prod(shape)])).view(shape)
        place += math.prod(shape)
        if name.startswith("layers."):
            weights |= {name.replace("layers.", f"model.layers.{i}."): each for i, each in enumerate(stored)}
        elif name:
            weights[name] = stored
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = halves(weights[name], config.head_size)
    return config, weights_from_hf(config, weights, where="its header")


def _order(config: ModelConfig, version: int) -> list[tuple[str, tuple[int, ...]]]:
    """Hugging Face's name and the shape of each part of the file, in order; "" marks a part that is not needed."""
    width, hidden, layers, vocabulary = config.embed_dim, config.hidden_dim, config.num_layers, config.vocab_size or 0
    keys = config.kv_heads * config.head_size
    table = ("model.embed_tokens.weight", (vocabulary, width))
    before = ("layers.input_layernorm.weight", (layers, width))
    after = ("layers.post_attention_layernorm.weight", (layers, width))
    last = ("model.norm.weight", (width,))
    attention = [
        (f"layers.self_attn.{name}_proj.weight", (layers, *shape))
        for name, shape in (("q", (width, width)), ("k", (keys, width)), ("v", (keys, width)), ("o", (width, width)))
    ]
    gate, down, up = (
        (f"layers.mlp.{name}_proj.weight", (layers, *shape))
        for name, shape in (("gate", (hidden, width)), ("down", (width, hidden)), ("up", (hidden, width)))
    )
    head = [] if config.tie_embeddings else [("lm_head.weight", (vocabulary, width))]
    if version:
        return [before, after, last, table, *attention, gate, down, up, *head]
    angles = [("", (config.max_seq_len * config.head_size,))]  # cosines and sines
    return [table, before, *attention, after, gate, down, up, last, *angles, *head]
