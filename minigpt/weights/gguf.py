"""Convert models to and from the names and settings of llama.cpp's architectures gpt2, qwen3 and llama.

All are pure functions between dicts. llama.cpp uses Hugging Face's layout under shorter names, with two exceptions.
GPT-2's matrices are not transposed. And in the llama architecture rotary positions pair neighbours, where transformers
pairs halves, so the rows of queries and keys have another order.
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from minigpt.config import ModelConfig, validate
from minigpt.errors import CheckpointError, ConfigError, nearest
from minigpt.weights.gguf_file import GGUF, Stored, fits
from minigpt.weights.huggingface import Weights, architecture, halves, weights_from_hf, weights_to_hf
from minigpt.weights.huggingface_config import MOST_POSITIONS

FILE_TYPES = {"fp32": 0, "fp16": 1, "q4_0": 2, "q8_0": 7, "bf16": 32}
"""llama.cpp's number for a file in which most matrices have this kind."""

# Hugging Face's names -> llama.cpp's names: first those outside of blocks, then those inside a block
_GPT2 = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "lm_head": "output"}
_GPT2 |= {"ln_1": "attn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output"}
_GPT2 |= {"ln_2": "ffn_norm", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
_LLAMA = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
_LLAMA |= {f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"}
_LLAMA |= {f"self_attn.{part}_norm": f"attn_{part}_norm" for part in "qk"}
_LLAMA |= {"input_layernorm": "attn_norm", "self_attn.o_proj": "attn_output"}
_LLAMA |= {"post_attention_layernorm": "ffn_norm"} | {
    f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")
}
_MATRIX = re.compile(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight")
_PAIRED = re.compile(r"blk\.\d+\.attn_(q|k)\.weight")


def architecture_in_gguf(config: ModelConfig) -> str:
    """llama.cpp's name of the architecture. Raises CheckpointError naming the fields that none of them has."""
    gpt2 = config.position == "learned"
    wanted: dict[str, tuple[Any, ...]] = {"bigrams": (0,), "softmaxes": (1,), "position": ("learned", "rope")}
    if gpt2:
        wanted |= {"norm": ("layernorm",), "bias": (True,), "qk_norm": (False,), "activation": ("gelu_tanh",)}
        wanted |= {"num_kv_heads": (None, config.num_heads), "head_dim": (None, config.embed_dim / config.num_heads)}
    else:
        wanted |= {"norm": ("rmsnorm",), "bias": (False,), "activation": ("swiglu",)}
    wrong = [name for name, values in wanted.items() if getattr(config, name) not in values]
    if wrong:
        shape = "gpt2" if gpt2 else "modern"
        fields = ", ".join(f"{name} {getattr(config, name)} ({' or '.join(map(str, wanted[name]))})" for name in wrong)
        raise CheckpointError(
            f"llama.cpp has no architecture with this model's fields; nearest is {shape}, but: {fields}"
        )
    return architecture(config)


def spelled(kind: str, name: str) -> str:
    """Convert Hugging Face's name of a weight to llama.cpp's name.

    spelled("gpt2", "transformer.h.0.ln_1.weight") -> "blk.0.attn_norm.weight"
    """
    owner, _, part = name.rpartition(".")
    owner = re.sub(r"^(transformer|model)\.", "", owner)
    table = _GPT2 if kind == "gpt2" else _LLAMA
    block = re.fullmatch(r"(?:h|layers)\.(\d+)\.(.*)", owner)
    short = f"blk.{block[1]}.{table.get(block[2], block[2])}" if block else table.get(owner, owner)
    return f"{short}.{part}"


def config_to_gguf(config: ModelConfig) -> dict[str, Any]:
    """The config as llama.cpp's settings."""
    kind = architecture_in_gguf(config)
    heads = {"head_count": config.num_heads, "head_count_kv": config.kv_heads}
    epsilon = "layer_norm_epsilon" if kind == "gpt2" else "layer_norm_rms_epsilon"
    settings: dict[str, Any] = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_seq_len,
        "embedding_length": config.embed_dim,
        "block_count": config.num_layers,
        "feed_forward_length": config.hidden_dim,
        **{f"attention.{name}": count for name, count in heads.items()},
        f"attention.{epsilon}": config.norm_eps,
    }
    if kind != "gpt2":
        settings |= {f"attention.{name}": config.head_size for name in ("key_length", "value_length")}
        settings |= {"rope.dimension_count": config.head_size, "rope.freq_base": config.rope_theta}
    return {"general.architecture": kind} | {f"{kind}.{name}": value for name, value in settings.items()}


def weights_to_gguf(config: ModelConfig, ours: Weights, precision: str) -> dict[str, tuple[Tensor, str]]:
    """Convert weights to name -> (tensor, kind). Vectors and positions are fp32, as in llama.cpp's own files.

    Rows that are not whole blocks of 32 are stored in fp16. With q4_0, the token embedding and the head keep 8 bits,
    since they lose most by rounding.
    """
    kind = architecture(config)
    tensors: dict[str, tuple[Tensor, str]] = {}
    for name, tensor in weights_to_hf(config, ours).items():
        short = spelled(kind, name)
        if kind == "gpt2" and _MATRIX.fullmatch(short):
            tensor = tensor.T
        if kind == "llama" and _PAIRED.fullmatch(short):
            tensor = halves(tensor, config.head_size, back=True)
        stored = "q8_0" if precision == "q4_0" and short in ("token_embd.weight", "output.weight") else precision
        if tensor.dim() == 1 or short == "position_embd.weight":
            stored = "fp32"
        elif not fits(tuple(tensor.shape), stored):
            stored = "fp16"
        tensors[short] = tensor, stored
    return tensors


# their setting -> (our field, default if the setting is missing; None: it must be there)
_FIELDS = {
    "context_length": ("max_seq_len", None),
    "embedding_length": ("embed_dim", None),
    "block_count": ("num_layers", None),
    "feed_forward_length": ("ff_dim", None),
    "attention.head_count": ("num_heads", None),
}
_MODERN = {
    "attention.head_count_kv": ("num_kv_heads", 0),
    "attention.key_length": ("head_dim", 0),
    "attention.layer_norm_rms_epsilon": ("norm_eps", None),
    "rope.freq_base": ("rope_theta", 10000.0),
}
_OF_GPT2 = {"attention.layer_norm_epsilon": ("norm_eps", None)}
_SAME = ("vocab_size", "attention.head_count_kv", "attention.value_length", "rope.dimension_count")
"""Settings that repeat others; the shapes of the weights check them if necessary."""
_HARMLESS = ("rope.scaling.finetuned", "rope.scaling.original_context_length", "attention.causal", "expert_count")
_FAMILIES = {"gpt2": _FIELDS | _OF_GPT2, "qwen3": _FIELDS | _MODERN, "llama": _FIELDS | _MODERN}


def config_from_gguf(file: GGUF) -> ModelConfig:
    """Convert a file's settings to our config.

    Raises CheckpointError for another architecture, a setting that minigpt does not have, or an impossible value.
    """
    kind = file.settings.get("general.architecture")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise CheckpointError(
            f"architecture {str(kind)[:60]!r} is not one we can read; {nearest(str(kind)[:60], _FAMILIES)}"
        )
    given = {
        name.removeprefix(f"{kind}."): value for name, value in file.settings.items() if name.startswith(f"{kind}.")
    }
    fields: dict[str, Any] = {"shape": "gpt2" if kind == "gpt2" else "modern", "qk_norm": kind == "qwen3"}
    for name, (ours, default) in _FAMILIES[kind].items():
        value = given.pop(name, default)
        if type(value) not in (int, float) or (default is None and not value > 0):
            raise CheckpointError(f"{kind}.{name} is {str(value)[:60]}; a number is needed")
        fields[ours] = value or None
    size = fields.get("head_dim") or fields["embed_dim"] / fields["num_heads"]
    for name, value in given.items():
        if name in ("attention.value_length", "rope.dimension_count"):
            if value != size:
                raise _refused(kind, name, value)
        elif name == "rope.scaling.type" and value == "none":
            continue
        elif name not in (*_SAME, *_HARMLESS) or (name == "expert_count" and value):
            raise _refused(kind, name, value)
    if (fields["max_seq_len"] or 0) > MOST_POSITIONS:
        raise CheckpointError(f"{kind}.context_length {fields['max_seq_len']} is more than {MOST_POSITIONS}")
    table = _stored(file.tensors, "token_embd.weight")
    fields |= {"vocab_size": table.shape[0], "tie_embeddings": "output.weight" not in file.tensors}
    try:
        return validate({"model": fields}).model
    except ConfigError as error:
        raise CheckpointError(f"its settings do not describe a model of minigpt: {error}") from None


def weights_from_gguf(config: ModelConfig, file: GGUF) -> Weights:
    """Convert a file's weights to our state dict in fp32.

    Raises CheckpointError naming a weight that is missing, not used, or of another shape.
    """
    kind = str(file.settings["general.architecture"])
    theirs = {name: stored.load() for name, stored in file.tensors.items()}
    for name in theirs if kind == "llama" else ():
        if _PAIRED.fullmatch(name) and theirs[name].shape[0] % config.head_size == 0:
            theirs[name] = halves(theirs[name], config.head_size)
    return weights_from_hf(config, theirs, lambda name: spelled(kind, name), "its header", transposed=False)


def _stored(tensors: Mapping[str, Stored], name: str) -> Stored:
    if name not in tensors or len(tensors[name].shape) != 2:
        raise CheckpointError(f"{name} is missing; download the model again")
    return tensors[name]


def _refused(kind: str, name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"minigpt cannot compute a model with {kind}.{name[:60]} {str(value)[:60]}")
