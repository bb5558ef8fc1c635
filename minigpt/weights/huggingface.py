"""Names and layouts of the two Hugging Face architectures whose twins we are: GPT2LMHeadModel and Qwen3ForCausalLM.

Pure functions between dicts; nothing of transformers is imported. GPT-2 stores its projections as [in, out]
(Conv1D), we as [out, in]; Qwen3 has q, k, v and gate, up as matrices of their own, ours are stacked.
"""

from typing import Any

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, nearest

Weights = dict[str, Tensor]


def architecture(config: ModelConfig) -> str:
    """ "gpt2" or "qwen3". Raises CheckpointError naming the fields that neither has."""
    gpt2 = {"norm": "layernorm", "position": "learned", "activation": "gelu_tanh", "qk_norm": False, "bias": True}
    qwen3 = {"norm": "rmsnorm", "position": "rope", "activation": "swiglu", "qk_norm": True, "bias": False}
    if config.bigrams:
        raise CheckpointError(
            "bigrams have no Hugging Face twin; train with --model.bigrams 0 for what other tools can run"
        )
    for name, fields in (("gpt2", gpt2), ("qwen3", qwen3)):
        if all(getattr(config, field) == value for field, value in fields.items()) and (
            name == "qwen3" or (config.kv_heads == config.num_heads and config.tie_embeddings)
        ):
            return name
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
            "activation_function": "gelu_new",
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
    """Our fields of a config.json. Raises CheckpointError for another architecture."""
    kind = hf.get("model_type", "")
    if kind == "gpt2":
        return ModelConfig(
            shape="gpt2",
            vocab_size=hf["vocab_size"],
            max_seq_len=hf["n_positions"],
            embed_dim=hf["n_embd"],
            num_layers=hf["n_layer"],
            num_heads=hf["n_head"],
            ff_dim=hf.get("n_inner") or 4 * hf["n_embd"],
            norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        )
    if kind == "qwen3":
        rope = hf.get("rope_parameters") or {}
        return ModelConfig(
            shape="modern",
            vocab_size=hf["vocab_size"],
            max_seq_len=hf["max_position_embeddings"],
            embed_dim=hf["hidden_size"],
            num_layers=hf["num_hidden_layers"],
            num_heads=hf["num_attention_heads"],
            num_kv_heads=hf["num_key_value_heads"],
            head_dim=hf["head_dim"],
            ff_dim=hf["intermediate_size"],
            norm_eps=hf["rms_norm_eps"],
            rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)),
            tie_embeddings=hf.get("tie_word_embeddings", False),
        )
    raise CheckpointError(f"architecture {kind!r} is not one we can read; {nearest(kind, ['gpt2', 'qwen3'])}")


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
    if architecture(config) == "gpt2":
        out = {"transformer.wte.weight": embedding, "transformer.wpe.weight": ours["positions.weight"]}
        for kind in ("weight", "bias"):
            out[f"transformer.ln_f.{kind}"] = ours[f"norm.{kind}"]
            for i in range(config.num_layers):
                for mine, theirs, transposed in _GPT2:
                    tensor = ours[f"blocks.{i}.{mine}.{kind}"]
                    flip = transposed and kind == "weight"
                    out[f"transformer.h.{i}.{theirs}.{kind}"] = tensor.T.contiguous() if flip else tensor
        return out
    out = {"model.embed_tokens.weight": embedding, "model.norm.weight": ours["norm.weight"]}
    if not config.tie_embeddings:
        out["lm_head.weight"] = ours["head.weight"][: config.vocab_size]
    for i in range(config.num_layers):
        for mine, theirs in _QWEN3:
            pieces = ours[f"blocks.{i}.{mine}.weight"].split(_sizes(config, mine, len(theirs)), dim=0)
            for name, piece in zip(theirs, pieces, strict=True):
                out[f"model.layers.{i}.{name}.weight"] = piece.contiguous()
    return out


def weights_from_hf(config: ModelConfig, theirs: Weights) -> Weights:
    """Our state dict of the twin's; the vocabulary is padded with zero rows.

    Raises CheckpointError naming a missing one.
    """
    try:
        if architecture(config) == "gpt2":
            named = {name.removeprefix("transformer."): tensor for name, tensor in theirs.items()}
            out = {"embedding.weight": _pad(config, named["wte.weight"]), "positions.weight": named["wpe.weight"]}
            for kind in ("weight", "bias"):
                out[f"norm.{kind}"] = named[f"ln_f.{kind}"]
                for i in range(config.num_layers):
                    for mine, name, transposed in _GPT2:
                        tensor = named[f"h.{i}.{name}.{kind}"]
                        flip = transposed and kind == "weight"
                        out[f"blocks.{i}.{mine}.{kind}"] = tensor.T.contiguous() if flip else tensor
            return out
        named = {name.removeprefix("model."): tensor for name, tensor in theirs.items()}
        out = {"embedding.weight": _pad(config, named["embed_tokens.weight"]), "norm.weight": named["norm.weight"]}
        if not config.tie_embeddings:
            out["head.weight"] = _pad(config, named["lm_head.weight"])
        for i in range(config.num_layers):
            for mine, names in _QWEN3:
                out[f"blocks.{i}.{mine}.weight"] = torch.cat([named[f"layers.{i}.{name}.weight"] for name in names])
        return out
    except KeyError as error:
        raise CheckpointError(f"the Hugging Face weights lack {error.args[0]}") from None


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
