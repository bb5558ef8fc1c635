"""Convert config.json of the Hugging Face architectures GPT2LMHeadModel, Qwen3ForCausalLM and LlamaForCausalLM.

All are pure functions between dicts. Every setting in the file is checked. A setting that minigpt does not have is
refused by name, unless it has its family's default value or cannot change what the model computes.
"""

import math
from typing import Any, NamedTuple

from minigpt.config import ModelConfig, validate
from minigpt.errors import CheckpointError, ConfigError, nearest


class _Field(NamedTuple):
    """One setting of config.json: our field, and the default of transformers."""

    ours: str
    default: Any
    null: bool = False
    """Whether null is a valid value; it means that our field is not set."""


# the settings that have a field here; a value must have the type of its default
_GPT2 = {
    "vocab_size": _Field("vocab_size", 50257),
    "n_positions": _Field("max_seq_len", 1024),
    "n_embd": _Field("embed_dim", 768),
    "n_layer": _Field("num_layers", 12),
    "n_head": _Field("num_heads", 12),
    "n_inner": _Field("ff_dim", 0, null=True),
    "layer_norm_epsilon": _Field("norm_eps", 1e-5),
    "activation_function": _Field("activation", "gelu_new"),
    "tie_word_embeddings": _Field("tie_embeddings", True),
}
_QWEN3 = {
    "vocab_size": _Field("vocab_size", 151936),
    "max_position_embeddings": _Field("max_seq_len", 32768),
    "hidden_size": _Field("embed_dim", 4096),
    "num_hidden_layers": _Field("num_layers", 32),
    "num_attention_heads": _Field("num_heads", 32),
    "num_key_value_heads": _Field("num_kv_heads", 32, null=True),
    "head_dim": _Field("head_dim", 128),
    "intermediate_size": _Field("ff_dim", 22016),
    "rms_norm_eps": _Field("norm_eps", 1e-6),
    "hidden_act": _Field("activation", "silu"),
    "tie_word_embeddings": _Field("tie_embeddings", False),
}
_LLAMA = _QWEN3 | {
    "vocab_size": _Field("vocab_size", 32000),
    "max_position_embeddings": _Field("max_seq_len", 2048),
    "head_dim": _Field("head_dim", 128, null=True),
    "intermediate_size": _Field("ff_dim", 11008),
}
_FAMILIES = {"gpt2": ("gpt2", _GPT2), "qwen3": ("modern", _QWEN3), "llama": ("modern", _LLAMA)}
"""model_type -> (our shape, its settings)."""
_ACTIVATIONS = {
    "gpt2": {"gelu_new": "gelu_tanh", "gelu": "gelu", "relu": "relu", "relu2": "relu2"}
    | dict.fromkeys(("gelu_pytorch_tanh", "gelu_python_tanh", "gelu_accurate", "gelu_fast"), "gelu_tanh"),
    "qwen3": {"silu": "swiglu", "swish": "swiglu"},
    "llama": {"silu": "swiglu", "swish": "swiglu"},
}
# settings that change the results and that minigpt supports only with these values
_FIXED: dict[str, dict[str, tuple[Any, ...]]] = {
    "gpt2": {
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "reorder_and_upcast_attn": (False,),
        "add_cross_attention": (False,),
        "is_encoder_decoder": (False,),
        "chunk_size_feed_forward": (0,),
        "pruned_heads": ({}, None),
        "sliding_window": (None,),  # transformers' cache reads it for every family
    },
    "qwen3": {
        "attention_bias": (False,),
        "use_sliding_window": (False, None),
        "is_encoder_decoder": (False,),
        "chunk_size_feed_forward": (0,),
        "pruned_heads": ({}, None),
    },
    "llama": {
        "attention_bias": (False,),
        "mlp_bias": (False,),
        "rope_interleaved": (False,),
        "sliding_window": (None,),
        "is_encoder_decoder": (False,),
        "chunk_size_feed_forward": (0,),
        "pruned_heads": ({}, None),
    },
}
# settings that cannot change the logits of a text, grouped by reason; these are prefixes of names
_HARMLESS = (
    *("_name_or_path", "architectures", "model_type", "transformers_version"),  # the origin of the file
    *("torch_dtype", "dtype"),  # how the weights are stored; we compute in fp32 or as --precision says
    *("use_cache", "return_dict", "output_hidden_states", "output_attentions", "_attn_implementation"),  # how it is run
    *("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "gradient_checkpointing"),  # only training
    "initializer_range",  # only training from the beginning
    *("bos_token_id", "eos_token_id", "pad_token_id", "task_specific_params"),  # generation; also in tokenizer.json
    *("summary_", "id2label", "label2id", "problem_type"),  # heads that do not predict tokens
    # how texts are generated, in older files
    *("do_sample", "max_length", "min_length", "temperature", "top_k", "top_p", "num_beams", "num_return_sequences"),
    *("length_penalty", "repetition_penalty", "no_repeat_ngram_size", "early_stopping"),
    # unused: in the files of gpt2-medium, gpt2-xl and distilgpt2, in older files, and in unsloth's
    *("n_special", "predict_special_tokens", "output_past", "_num_labels", "num_labels", "finetuning_task"),
    *("is_decoder", "torchscript", "use_bfloat16", "tokenizer_class", "unsloth_"),
    *("pretraining_tp", "is_llama_config"),  # splits Llama's computation; only in SmolLM's files
    "transformers.js_config",  # files for browsers
    *("n_ctx", "sliding_window", "max_window_layers"),  # unused (the last two: without use_sliding_window)
)
MOST_POSITIONS = 1 << 20
"""Longest context that is accepted, since the tables of rotary angles take memory for all of it."""


def architecture(config: ModelConfig) -> str:
    """The architecture: "gpt2", "qwen3" or "llama". Raises CheckpointError naming the fields that none of them has."""
    gpt2 = {"norm": "layernorm", "position": "learned", "qk_norm": False, "bias": True}
    gpt2 |= {"num_kv_heads": (None, config.num_heads), "head_dim": (None, config.embed_dim / config.num_heads)}
    qwen3 = {"norm": "rmsnorm", "position": "rope", "qk_norm": True, "bias": False}
    for name, off in (("bigrams", 0), ("softmaxes", 1)):
        if getattr(config, name) != off:
            raise CheckpointError(
                f"Hugging Face has no model with {name}; train with --model.{name} {off} for other tools"
            )
    wrong: dict[str, list[str]] = {}
    for name, fields in (("gpt2", gpt2), ("qwen3", qwen3), ("llama", qwen3 | {"qk_norm": False})):
        fields["activation"] = tuple(_ACTIVATIONS[name].values())
        found = {field: getattr(config, field) for field in fields}
        fits = {f: found[f] in value if isinstance(value, tuple) else found[f] == value for f, value in fields.items()}
        if all(fits.values()):
            return name
        wrong[name] = [f"{field} {found[field]}" for field, fit in fits.items() if not fit]
    kin = min(wrong, key=lambda name: len(wrong[name]))
    raise CheckpointError(
        "Hugging Face has models of the shapes gpt2 and modern only; this model mixes their fields: "
        f"nearest is {kin}, but: {', '.join(wrong[kin])}"
    )


def config_to_hf(config: ModelConfig, eos_id: int | None = None) -> dict[str, Any]:
    """Convert our config to config.json of the same model at Hugging Face."""
    kind = architecture(config)
    activation = next(name for name, ours in _ACTIVATIONS[kind].items() if ours == config.activation)
    common = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.init_std,
        "bos_token_id": eos_id,
        "eos_token_id": eos_id,
        "dtype": "float32",
    }
    if kind == "gpt2":
        return common | {
            "model_type": "gpt2",
            "architectures": ["GPT2LMHeadModel"],
            "n_positions": config.max_seq_len,
            "n_ctx": config.max_seq_len,  # the same, for mlx-lm
            "n_embd": config.embed_dim,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.hidden_dim,
            "activation_function": activation,
            "layer_norm_epsilon": config.norm_eps,
            "embd_pdrop": config.drops("input")[0],
            "attn_pdrop": config.drops("attention")[0],
            "resid_pdrop": config.drops("block")[0],
        }
    return common | {
        "model_type": kind,
        "architectures": [f"{kind.capitalize()}ForCausalLM"],
        "max_position_embeddings": config.max_seq_len,
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "intermediate_size": config.hidden_dim,
        "hidden_act": activation,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_dropout": config.drops("attention")[0],
        "attention_bias": False,
    }


def config_from_hf(hf: Any) -> ModelConfig:
    """Convert a config.json to our config.

    Raises CheckpointError for another architecture, a setting that minigpt does not have, or an impossible value.
    """
    if not isinstance(hf, dict):
        raise CheckpointError("config.json has no settings; copy it again from the model")
    kind = hf.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise CheckpointError(f"architecture {kind!r} is not one we can read; {nearest(str(kind), list(_FAMILIES))}")
    shape, known = _FAMILIES[kind]
    fields: dict[str, Any] = {"shape": shape} | {field.ours: _value(hf, name, field) for name, field in known.items()}
    if fields["activation"] not in _ACTIVATIONS[kind]:
        raise _refused(next(name for name in known if known[name].ours == "activation"), fields["activation"])
    fields["activation"] = _ACTIVATIONS[kind][fields["activation"]]
    rest = {name: value for name, value in hf.items() if name not in known}
    if kind == "llama":
        fields["qk_norm"] = False
    if kind != "gpt2":
        fields["rope_theta"] = _rope_theta(rest)
        layers = rest.pop("layer_types", None)
        plain = isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
        if layers is not None and not (plain and len(layers) == fields["num_layers"]):
            raise _refused("layer_types", layers)
    for name, value in rest.items():
        if name in _FIXED[kind]:
            if not any(type(value) is type(fixed) and value == fixed for fixed in _FIXED[kind][name]):
                raise _refused(name, value)
        elif not name.startswith(_HARMLESS):
            raise _refused(name, value)
    if fields["max_seq_len"] > MOST_POSITIONS:
        raise CheckpointError(f"config.json: a context of {fields['max_seq_len']} is more than {MOST_POSITIONS}")
    fields["ff_dim"] = fields["ff_dim"] if fields["ff_dim"] is not None else 4 * fields["embed_dim"]
    try:
        return validate({"model": fields}).model
    except ConfigError as error:
        raise CheckpointError(f"config.json: {error}") from None


def _value(hf: dict[str, Any], name: str, field: _Field) -> Any:
    """A setting's value, or its default if it is missing. Raises CheckpointError for a value of another type."""
    value = hf.get(name, None if field.null else field.default)
    if value is None and field.null:
        return None
    kind = type(field.default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise CheckpointError(f"config.json: {name} is {_short(value)}; {_TYPES[kind]} is needed")
    return value


_TYPES = {int: "a whole number", float: "a number", str: "a name", bool: "true or false"}


def _rope_theta(rest: dict[str, Any]) -> float:
    """Remove the base of the rotary wavelengths from `rest` and return it.

    Raises CheckpointError for another rotary scheme.
    """
    theta = _value(rest, "rope_theta", _Field("rope_theta", 10000.0))
    rest.pop("rope_theta", None)
    given = [(name, rest.pop(name)) for name in ("rope_scaling", "rope_parameters") if name in rest]
    given = [(name, value) for name, value in given if value is not None]
    for name, value in given:
        if len(given) > 1 or not isinstance(value, dict):
            raise _refused(name, value)
        for key, part in value.items():
            if not (key == "rope_theta" or (key in ("rope_type", "type") and part == "default")):
                raise _refused(f"{name}.{key}", part)
        theta = _value({"rope_theta": theta} | value, "rope_theta", _Field("rope_theta", 10000.0))
    if not 0 < theta < math.inf:
        raise CheckpointError(f"config.json: rope_theta is {theta}; a number above 0 is needed")
    return theta


def _refused(name: str, value: Any) -> CheckpointError:
    return CheckpointError(f"config.json: minigpt cannot compute a model with {name} {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
