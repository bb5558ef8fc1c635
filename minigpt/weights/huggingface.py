"""Names and layouts of the two Hugging Face architectures whose twins we are: GPT2LMHeadModel and Qwen3ForCausalLM.

Pure functions between dicts; nothing of transformers is imported. GPT-2 stores its projections as [in, out]
(Conv1D), we as [out, in]; Qwen3 has q, k, v and gate, up as matrices of their own, ours are stacked.
"""

from collections.abc import Callable
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, nearest

Weights = dict[str, Tensor]


_ACTIVATIONS = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu": "relu"}
"""Ours -> the one of GPT-2's `activation_function`s that is the same."""
_FROM_HF = {theirs: ours for ours, theirs in _ACTIVATIONS.items()} | {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}

_DEFAULTS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "initializer_range": 0.02,
    },
    "qwen3": {
        "vocab_size": 151936, "max_position_embeddings": 32768, "hidden_size": 4096, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "intermediate_size": 22016,
        "rms_norm_eps": 1e-6, "rope_theta": None, "rope_parameters": None, "tie_word_embeddings": False,
        "initializer_range": 0.02,
    },
}  # fmt: skip
"""What we read of a config.json, with the value of a field that is left out (transformers 5)."""
_FIXED: dict[str, dict[str, Any]] = {
    "gpt2": {"scale_attn_weights": True},
    "qwen3": {"hidden_act": "silu"},
}
"""What we compute in one way only. Any other field that a file may have is off where it is None, False, 0 or empty."""
_HARMLESS = frozenset(
    # names and versions
    "model_type architectures _name_or_path transformers_version torch_dtype dtype tokenizer_class _commit_hash "
    "task_specific_params id2label label2id finetuning_task problem_type "
    # special tokens: those of the tokenizer count
    "bos_token_id eos_token_id pad_token_id sep_token_id "
    # what is returned beside the logits, and how fast
    "use_cache return_dict output_hidden_states output_attentions torchscript attn_implementation "
    "_attn_implementation gradient_checkpointing n_ctx "
    # training only
    "attention_dropout embd_pdrop attn_pdrop resid_pdrop "
    # the head of another task, whose weights are refused where they are there
    "summary_type summary_use_proj summary_activation summary_proj_to_labels summary_first_dropout "
    # sampling
    "do_sample temperature top_k top_p num_beams max_length min_length repetition_penalty "
    # how Qwen3 would slide, if use_sliding_window were on; it is refused then
    "sliding_window max_window_layers".split()
)
"""Fields that cannot change a logit."""
_MOST_POSITIONS = 2**24
"""Longest context that is believed: position tables are made of it before any weight is looked at."""


def architecture(config: ModelConfig) -> str:
    """ "gpt2" or "qwen3". Raises CheckpointError naming the fields that neither has."""
    gpt2 = {"norm": "layernorm", "position": "learned", "qk_norm": False, "bias": True}
    qwen3 = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True, "bias": False}
    if config.bigrams:
        raise CheckpointError(
            "bigrams have no Hugging Face twin; train with --model.bigrams 0 for what other tools can run"
        )
    if all(getattr(config, field) == value for field, value in qwen3.items()):
        return "qwen3"
    plain = config.activation in _ACTIVATIONS and config.kv_heads == config.num_heads
    square = config.head_size * config.num_heads == config.embed_dim
    if plain and square and all(getattr(config, field) == value for field, value in gpt2.items()):
        return "gpt2"
    raise CheckpointError("only the shapes gpt2 and modern have a Hugging Face twin; this model mixes their fields")


def config_to_hf(config: ModelConfig, eos_id: int | None = None) -> dict[str, Any]:
    """config.json of the twin."""
    common = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "dtype": "float32",
    }
    if architecture(config) == "gpt2":
        return common | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.max_seq_len,
            "n_embd": config.embed_dim,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.hidden_dim,
            "activation_function": _ACTIVATIONS[config.activation],
            "layer_norm_epsilon": config.norm_eps,
            "embd_pdrop": config.dropout,
            "attn_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
        }
    return common | {
        "model_type": "qwen3",
        "architectures": ["Qwen3ForCausalLM"],
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.hidden_dim,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": config.dropout,
        "attention_bias": False,
    }


def config_from_hf(hf: dict[str, Any]) -> ModelConfig:
    """Our fields of a config.json; a field that is left out has transformers' default.

    Raises CheckpointError for another architecture, and naming a field that says what we do not compute.
    """
    if not isinstance(hf, dict):
        raise CheckpointError("config.json is not an object; copy it again")
    kind = hf.get("model_type")
    if kind not in _DEFAULTS:
        raise CheckpointError(f"architecture {kind!r} is not one we can read; {nearest(str(kind), ['gpt2', 'qwen3'])}")
    known, fixed = _DEFAULTS[kind], _FIXED[kind]
    for name, value in hf.items():
        if name in known or name in _HARMLESS or (kind == "qwen3" and name in ("layer_types", "rope_scaling")):
            continue
        if value != fixed[name] if name in fixed else value:
            raise CheckpointError(f"config.json: {name} is {_short(value)}, which minigpt does not compute")
    fields = {name: hf.get(name, default) for name, default in known.items()}
    common = {
        "vocab_size": _count(fields, "vocab_size"),
        "tie_embeddings": _flag(fields, "tie_word_embeddings"),
        "init_std": _number(fields, "initializer_range"),
    }
    if kind == "gpt2":
        activation = fields["activation_function"]
        if activation not in _FROM_HF:
            raise CheckpointError(
                f"config.json: activation_function is {_short(activation)}, which minigpt does not compute; "
                f"it has {', '.join(_FROM_HF)}"
            )
        width = _count(fields, "n_embd")
        shape = {
            "max_seq_len": _positions(fields, "n_positions"),
            "embed_dim": width,
            "num_layers": _count(fields, "n_layer"),
            "num_heads": _count(fields, "n_head"),
            "ff_dim": 4 * width if fields["n_inner"] is None else _count(fields, "n_inner"),
            "norm_eps": _number(fields, "layer_norm_epsilon"),
            "activation": _FROM_HF[activation],
        }
        return _checked({"shape": "gpt2", **common, **shape})
    layers, heads = _count(fields, "num_hidden_layers"), _count(fields, "num_attention_heads")
    if hf.get("layer_types") not in (None, ["full_attention"] * layers):
        raise CheckpointError("config.json: layer_types has layers other than full_attention; minigpt has none")
    shape = {
        "max_seq_len": _positions(fields, "max_position_embeddings"),
        "embed_dim": _count(fields, "hidden_size"),
        "num_layers": layers,
        "num_heads": heads,
        "num_kv_heads": heads if fields["num_key_value_heads"] is None else _count(fields, "num_key_value_heads"),
        "head_dim": _count(fields, "head_dim"),
        "ff_dim": _count(fields, "intermediate_size"),
        "norm_eps": _number(fields, "rms_norm_eps"),
        "rope_theta": _rope_theta(hf),
    }
    return _checked({"shape": "modern", **common, **shape})


def _rope_theta(hf: dict[str, Any]) -> float:
    """Base of the rotary wavelengths. Raises CheckpointError for positions that are scaled in any way."""
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise CheckpointError(f"config.json: rope_parameters is {_short(rope)}, not an object; copy it again")
    for name, value in rope.items():
        kind = name in ("rope_type", "type") and value == "default"
        if not kind and name != "rope_theta" and not (name == "partial_rotary_factor" and value == 1):
            raise CheckpointError(f"config.json: rope has {name} {_short(value)}, which minigpt does not compute")
    if hf.get("rope_parameters") and hf.get("rope_scaling"):
        raise CheckpointError(
            "config.json: has both rope_parameters and rope_scaling; minigpt does not scale positions"
        )
    theta = rope.get("rope_theta", hf.get("rope_theta"))
    return 10000.0 if theta is None else _number({"rope_theta": theta}, "rope_theta")


def _checked(fields: dict[str, Any]) -> ModelConfig:
    try:
        return ModelConfig.model_validate(fields)
    except ValidationError as error:
        why = "; ".join(problem["msg"] for problem in error.errors())
        raise CheckpointError(f"config.json: describes no model ({why})") from None


def _count(fields: dict[str, Any], name: str) -> int:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise CheckpointError(f"config.json: {name} is {_short(value)}, not a whole number above 0; copy it again")
    return value


def _positions(fields: dict[str, Any], name: str) -> int:
    count = _count(fields, name)
    if count > _MOST_POSITIONS:
        raise CheckpointError(f"config.json: {name} is {count}; minigpt has {_MOST_POSITIONS:,} positions at most")
    return count


def _number(fields: dict[str, Any], name: str) -> float:
    value = fields[name]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise CheckpointError(f"config.json: {name} is {_short(value)}, not a number above 0; copy it again")
    return float(value)


def _flag(fields: dict[str, Any], name: str) -> bool:
    value = fields[name]
    if not isinstance(value, bool):
        raise CheckpointError(f"config.json: {name} is {_short(value)}, neither true nor false; copy it again")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


# ours -> GPT-2's, per block; the flag marks matrices that GPT-2 stores transposed
_GPT2 = (
    ("norm1", "ln_1", False),
    ("attention.qkv", "attn.c_attn", True),
    ("attention.out", "attn.c_proj", True),
    ("norm2", "ln_2", False),
    ("feed_forward.up", "mlp.c_fc", True),
    ("feed_forward.down", "mlp.c_proj", True),
)
# ours -> Qwen3's, per block; several names are stacked in ours
_QWEN3 = (
    ("norm1", ("input_layernorm",)),
    ("attention.qkv", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
    ("attention.q_norm", ("self_attn.q_norm",)),
    ("attention.k_norm", ("self_attn.k_norm",)),
    ("attention.out", ("self_attn.o_proj",)),
    ("norm2", ("post_attention_layernorm",)),
    ("feed_forward.up", ("mlp.gate_proj", "mlp.up_proj")),
    ("feed_forward.down", ("mlp.down_proj",)),
)


def weights_to_hf(config: ModelConfig, ours: Weights) -> Weights:
    """State dict of the twin; padded vocabulary rows are cut off."""
    embedding = ours["embedding.weight"][: config.vocab_size]
    head = {} if config.tie_embeddings else {"lm_head.weight": ours["head.weight"][: config.vocab_size]}
    if architecture(config) == "gpt2":
        out = {"transformer.wte.weight": embedding, "transformer.wpe.weight": ours["positions.weight"], **head}
        for kind in ("weight", "bias"):
            out[f"transformer.ln_f.{kind}"] = ours[f"norm.{kind}"]
            for i in range(config.num_layers):
                for mine, theirs, transposed in _GPT2:
                    tensor = ours[f"blocks.{i}.{mine}.{kind}"]
                    flip = transposed and kind == "weight"
                    out[f"transformer.h.{i}.{theirs}.{kind}"] = tensor.T.contiguous() if flip else tensor
        return out
    out = {"model.embed_tokens.weight": embedding, "model.norm.weight": ours["norm.weight"], **head}
    for i in range(config.num_layers):
        for mine, theirs in _QWEN3:
            pieces = ours[f"blocks.{i}.{mine}.weight"].split(_sizes(config, mine, len(theirs)), dim=0)
            for name, piece in zip(theirs, pieces, strict=True):
                out[f"model.layers.{i}.{name}.weight"] = piece.contiguous()
    return out


def weights_from_hf(config: ModelConfig, theirs: Weights) -> Weights:
    """Our state dict of the twin's; the vocabulary is padded with zero rows.

    Raises CheckpointError naming a weight that is missing, of another shape, not of floating point, or that nothing
    reads.
    """
    gpt2 = architecture(config) == "gpt2"
    prefix = "transformer." if gpt2 else "model."
    left = {name.removeprefix(prefix): tensor for name, tensor in theirs.items()}
    if len(left) < len(theirs):
        raise CheckpointError(f"the Hugging Face weights have names with and without {prefix!r}; keep one of the two")

    def take(name: str, *shape: int) -> Tensor:
        if name not in left:
            raise CheckpointError(f"the Hugging Face weights lack {name}")
        tensor = left.pop(name)
        if tuple(tensor.shape) != shape:
            raise CheckpointError(f"{name} is {tuple(tensor.shape)} and config.json says {shape}; copy both again")
        if not tensor.is_floating_point():
            raise CheckpointError(f"{name} is {tensor.dtype}; minigpt reads weights of floating point only")
        return tensor.float()

    rows, width = config.vocab_size or 0, config.embed_dim
    out = {"embedding.weight": _pad(config, take("wte.weight" if gpt2 else "embed_tokens.weight", rows, width))}
    if not config.tie_embeddings:
        out["head.weight"] = _pad(config, take("lm_head.weight", rows, width))
    out |= _gpt2_blocks(config, take) if gpt2 else _qwen3_blocks(config, take)
    tied = left.pop("lm_head.weight", None)
    if tied is not None and not torch.equal(_pad(config, tied.float()), out["embedding.weight"]):
        raise CheckpointError("lm_head.weight is not the embedding, and config.json has tie_word_embeddings true")
    if unread := [
        name for name in left if not name.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))
    ]:
        raise CheckpointError(f"minigpt has no place for {_short(unread[0])} ({len(unread)} such weights)")
    return out


Take = Callable[..., Tensor]
"""A name and the shape that it must have -> the tensor in fp32."""


def _gpt2_blocks(config: ModelConfig, take: Take) -> Weights:
    width, hidden = config.embed_dim, config.hidden_dim
    out = {"positions.weight": take("wpe.weight", config.max_seq_len, width)}
    inside = {"attention.qkv": (width, 3 * width), "attention.out": (width, width),
              "feed_forward.up": (width, hidden), "feed_forward.down": (hidden, width)}  # fmt: skip
    for kind in ("weight", "bias"):
        out[f"norm.{kind}"] = take(f"ln_f.{kind}", width)
        for i in range(config.num_layers):
            for mine, name, transposed in _GPT2:
                shape = inside.get(mine, (width,))
                tensor = take(f"h.{i}.{name}.{kind}", *(shape if kind == "weight" else shape[-1:]))
                out[f"blocks.{i}.{mine}.{kind}"] = tensor.T.contiguous() if transposed and kind == "weight" else tensor
    return out


def _qwen3_blocks(config: ModelConfig, take: Take) -> Weights:
    out = {"norm.weight": take("norm.weight", config.embed_dim)}
    columns = {"attention.out": config.num_heads * config.head_size, "feed_forward.down": config.hidden_dim}
    for i in range(config.num_layers):
        for mine, names in _QWEN3:
            width = () if "norm" in mine else (columns.get(mine, config.embed_dim),)
            sizes = _sizes(config, mine, len(names))
            pieces = [take(f"layers.{i}.{name}.weight", size, *width) for name, size in zip(names, sizes, strict=True)]
            out[f"blocks.{i}.{mine}.weight"] = torch.cat(pieces)
    return out


def narrowed(config: ModelConfig, weights: Weights, count: int) -> tuple[ModelConfig, Weights]:
    """The model with the first `count` ids only: rows that are there for speed have no token, so none is drawn."""
    config = config.model_copy(update={"vocab_size": count})
    rows = {
        name: _pad(config, weights[name][:count]) for name in ("embedding.weight", "head.weight") if name in weights
    }
    return config, weights | rows


def _sizes(config: ModelConfig, name: str, count: int) -> list[int]:
    if name == "attention.qkv":
        key = config.kv_heads * config.head_size
        return [config.num_heads * config.head_size, key, key]
    if name == "feed_forward.up":
        return [config.hidden_dim] * 2
    if name.endswith(("q_norm", "k_norm")):
        return [config.head_size]
    return [config.embed_dim] * count


def _pad(config: ModelConfig, rows: Tensor) -> Tensor:
    """[vocab_size, C] -> [padded_vocab_size, C]."""
    return torch.cat([rows, rows.new_zeros(config.padded_vocab_size - rows.shape[0], rows.shape[1])])
