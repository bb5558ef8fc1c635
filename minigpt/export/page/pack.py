"""Turn a run into plain numbers and texts for a page: the model's shape, weights, tokenizer, settings, template."""

import base64
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from minigpt.config import GenerationConfig, ModelConfig
from minigpt.errors import ConfigError
from minigpt.export.page.pattern import javascript
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.model import GPT
from minigpt.runs.quantize import pack_weights
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.chat_template import Template
from minigpt.tokenizers.patterns import spell
from minigpt.tokenizers.simple import CharTokenizer
from minigpt.tokenizers.words import WordTokenizer

PRECISIONS = ("int8", "fp16", "fp32")
BYTES = {"int8": 1, "fp16": 2, "fp32": 4}
MOST = 400_000_000
"""Largest number of characters of weights; a browser's string can hold only about 500 million."""
KNOWN = {
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "sinusoidal", "rope"),
    "activation": ("gelu", "gelu_tanh", "relu", "relu2", "swiglu"),
    "softmaxes": (1,),
}
"""What model.js can compute, by field of ModelConfig."""
_SHAPE = (
    "vocab_size", "max_seq_len", "embed_dim", "num_heads", "kv_heads", "head_size", "num_layers", "hidden_dim", "gates",
    "norm", "norm_eps", "position", "rope_theta", "activation", "qk_norm", "tie_embeddings", "bigrams",
)  # fmt: skip
_SETTINGS = (
    "max_new_tokens", "repetition_penalty", "frequency_penalty", "presence_penalty", "no_repeat_ngram_size",
    "min_new_tokens", "temperature", "top_k", "top_p", "min_p", "typical_p", "stop_at_eos", "stop", "max_seconds",
)  # fmt: skip
_SEARCHES = {"num_beams": 1, "best_of": 1, "penalty_alpha": 0.0, "stop_regex": None}
"""Settings that a page cannot use, with the value that switches each off."""


def check_size(weights: int, precision: str) -> None:
    """Raise ConfigError for weights that are too many for one file."""
    size = weights * BYTES[precision] * 4 // 3
    if size <= MOST:
        return
    smaller = [name for name in PRECISIONS if weights * BYTES[name] * 4 // 3 <= MOST]
    fix = f"use precision {smaller[-1]}" if smaller else "export it with --to hf instead"
    raise ConfigError(
        f"{weights:,} weights in {precision} are a page of {size / 1e6:,.0f} MB, too large for a browser; {fix}"
    )


def shape_data(config: ModelConfig) -> dict[str, Any]:
    """The shape as model.js reads it. Raises ConfigError naming fields that it cannot compute."""
    if strange := [f"{name} {getattr(config, name)}" for name, known in KNOWN.items()
                   if getattr(config, name) not in known]:  # fmt: skip
        raise ConfigError(f"a page cannot run this model: it has {', '.join(strange)}")
    return {name: getattr(config, name) for name in _SHAPE}


def tokenizer_data(tokenizer: Tokenizer) -> dict[str, Any]:
    """The tokenizer as tokenizer.js reads it. Raises ConfigError for a kind that it cannot run."""
    data: dict[str, Any] = {
        "kind": tokenizer.kind,
        "size": tokenizer.vocab_size,
        "special": tokenizer.special_tokens,
        "added": tokenizer.added_tokens,
        "pieces": "",
    }
    if isinstance(tokenizer, CharTokenizer):
        return data | {"pieces": "".join(tokenizer.characters)}
    if isinstance(tokenizer, BPETokenizer):
        named = {*tokenizer.special_tokens.values(), *tokenizer.added_tokens.values()}
        pieces = ["" if id_ in named else spell(tokenizer.token_bytes(id_)) for id_ in range(tokenizer.vocab_size)]
        return data | {"pieces": " ".join(pieces), "pattern": javascript(tokenizer.pattern), "nfc": tokenizer.nfc}
    if isinstance(tokenizer, WordTokenizer):
        return data | {"pieces": " ".join(tokenizer.words)}
    if tokenizer.kind == "byte":
        return data
    raise ConfigError(f"a page cannot run a tokenizer of the kind {tokenizer.kind}; export to hf, gguf or onnx")


def settings_data(config: GenerationConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """The run's generation settings. Raises ConfigError for one that a page cannot use."""
    if strange := [name for name, off in _SEARCHES.items() if getattr(config, name) != off]:
        offs = ", ".join(f"{name}: {'null' if _SEARCHES[name] is None else _SEARCHES[name]}" for name in strange)
        raise ConfigError(f"a page cannot write with generation.{strange[0]}; set {offs} in the run's config.yaml")
    rules = make_rules(config, tokenizer)
    return {
        "settings": {name: getattr(config, name) for name in _SETTINGS} | {"seed": str(config.seed)},
        "rules": {"eos_id": rules.eos_id, "bias": list(rules.bias.items()), "bad_words": rules.bad_words},
    }


def chat_data(template: Template, has_eos: bool) -> dict[str, Any]:
    """The template, as the chat command uses it: with spaces before an answer, and texts that end one."""
    return asdict(template) | {
        "lead": template.lead,
        "begin": template.begin,
        "stop": list(template.stops(has_eos)),
    }


def tensors_data(model: GPT, precision: str) -> dict[str, dict[str, Any]]:
    """Name to {"kind", "rows", "columns", "base64"}. Vectors are fp32; int8 rows have their fp32 scales before them.

    Raises:
        CheckpointError: weights that are NaN or infinite.
        ConfigError: weights that fp16 cannot hold.
    """
    weights = without_padding(model)
    packed = pack_weights(weights, 8, 64, 8)
    found = {}
    for name, tensor in weights.items():
        kind = precision if tensor.dim() == 2 else "fp32"
        if kind == "int8":
            content = _bytes(packed[f"{name}.scale"].float()) + _bytes(packed[f"{name}.int8"])
        elif kind == "fp16":
            half = tensor.half()
            if not half.isfinite().all():
                raise ConfigError(f"precision: fp16 cannot hold the numbers of {name}; use int8 or fp32")
            content = _bytes(half)
        else:
            content = _bytes(tensor)
        size = {"rows": tensor.shape[0], "columns": tensor.shape[1] if tensor.dim() == 2 else 1}
        found[name] = {"kind": kind, **size, "base64": base64.b64encode(content).decode()}
    return found


def without_padding(model: GPT) -> dict[str, Tensor]:
    """The weights in fp32, without the rows that only pad the matrices of the vocabulary."""
    padded = ("embedding.weight", "head.weight")
    rows = model.config.vocab_size
    return {n: w.cpu().float()[: rows if n in padded else None] for n, w in model.weights().items()}


def rounded(model: GPT, precision: str) -> GPT:
    """A copy of the model with the page's rounded weights."""
    from minigpt.weights.quantized import unpack_all

    weights = {name: tensor.cpu().float() for name, tensor in model.weights().items()}
    if precision == "int8":
        weights = unpack_all(pack_weights(weights, 8, 64, 8))
    elif precision == "fp16":
        weights = {name: w.half().float() if w.dim() == 2 else w for name, w in weights.items()}
    copy = GPT(model.config)
    copy.load_weights(weights)
    return copy.eval()


def _bytes(tensor: Tensor) -> bytes:
    kinds = {torch.float32: "<f4", torch.float16: "<f2", torch.int8: "i1"}
    return tensor.contiguous().numpy().astype(kinds[tensor.dtype]).tobytes()
