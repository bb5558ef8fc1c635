"""Convert weights to and from Hugging Face's GPT2LMHeadModel, Qwen3ForCausalLM and LlamaForCausalLM.

All are pure functions between dicts, without importing transformers. GPT-2 stores its projections as [in, out]
(Conv1D), minigpt as [out, in]. Qwen3 and Llama have separate matrices q, k, v and gate, up; minigpt stacks them. Llama
is the same as Qwen3 without norms of queries and keys.
"""

import re
from collections.abc import Callable

import torch
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import CheckpointError, first_names
from minigpt.weights.huggingface_config import architecture, config_from_hf, config_to_hf

__all__ = [
    "architecture",
    "config_from_hf",
    "config_to_hf",
    "cut_vocabulary",
    "halves",
    "weights_from_hf",
    "weights_to_hf",
]

Weights = dict[str, Tensor]
CONFIG_JSON = "config.json"


# (our name, GPT-2's name, whether it is a matrix, which GPT-2 stores transposed), inside a block
_GPT2 = (
    ("norm1", "ln_1", False),
    ("attention.qkv", "attn.c_attn", True),
    ("attention.out", "attn.c_proj", True),
    ("norm2", "ln_2", False),
    ("feed_forward.up", "mlp.c_fc", True),
    ("feed_forward.down", "mlp.c_proj", True),
)
# (our name, Qwen3's names), inside a block; our matrix stacks several of Qwen3's
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


def _modern(config: ModelConfig) -> list[tuple[str, tuple[str, ...]]]:
    """The names of Qwen3's weights inside a block, or of Llama's."""
    return [(mine, names) for mine, names in _QWEN3 if config.qk_norm or not mine.endswith(("q_norm", "k_norm"))]


# older files also contain the causal mask, and wavelengths that follow from the config
_BUFFERS = re.compile(r"(transformer\.)?h\.\d+\.attn\.(masked_)?bias|.*\.rotary_emb\.inv_freq")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def weights_to_hf(config: ModelConfig, ours: Weights) -> Weights:
    """Convert our state dict to Hugging Face's. Padded vocabulary rows are cut off."""
    embedding = ours["embedding.weight"][: config.vocab_size]
    head = {} if config.tie_embeddings else {"lm_head.weight": ours["head.weight"][: config.vocab_size]}
    if architecture(config) == "gpt2":
        out = head | {"transformer.wte.weight": embedding, "transformer.wpe.weight": ours["positions.weight"]}
        for kind in ("weight", "bias"):
            out[f"transformer.ln_f.{kind}"] = ours[f"norm.{kind}"]
            for i in range(config.num_layers):
                for mine, theirs, transposed in _GPT2:
                    tensor = ours[f"blocks.{i}.{mine}.{kind}"]
                    flip = transposed and kind == "weight"
                    out[f"transformer.h.{i}.{theirs}.{kind}"] = tensor.T.contiguous() if flip else tensor
        return out
    out = head | {"model.embed_tokens.weight": embedding, "model.norm.weight": ours["norm.weight"]}
    for i in range(config.num_layers):
        for mine, theirs in _modern(config):
            pieces = ours[f"blocks.{i}.{mine}.weight"].split(_rows(config, mine, len(theirs)), dim=0)
            for name, piece in zip(theirs, pieces, strict=True):
                out[f"model.layers.{i}.{name}.weight"] = piece.contiguous()
    return out


class _Reading:
    """The weights of a file. Each must be taken once, in the shape that follows from the config; none may be left."""

    def __init__(self, prefix: str, theirs: Weights, spell: Callable[[str], str] | None, where: str):
        self.spell, self.where = spell or (lambda name: name), where
        self.prefix = prefix if any(name.startswith(prefix) for name in theirs) else ""  # a model without head has none
        self.left = dict(theirs)

    def take(self, name: str, *shape: int) -> Tensor:
        """Take a weight, in fp32. Raises CheckpointError if it is missing, or has another shape or dtype."""
        name = self.spell(self.prefix + name)
        tensor = self.left.pop(name, None)
        if tensor is None:
            raise CheckpointError(
                f"{'the Hugging Face weights lack' if self.where == CONFIG_JSON else 'the weights lack'} {name}"
            )
        if tuple(tensor.shape) != shape:
            found = tuple(tensor.shape)
            raise CheckpointError(f"{name} is {found}, but {self.where} says {shape}")
        if tensor.dtype not in _FLOATS:
            raise CheckpointError(f"{name} has dtype {tensor.dtype}; give the model in fp32, bf16 or fp16")
        return tensor.float()

    def head(self, config: ModelConfig, embedding: Tensor) -> Weights:
        """Take the head of an untied model. The file of a tied model may have a copy of the embedding as head."""
        self.prefix = ""
        if config.tie_embeddings and self.spell("lm_head.weight") not in self.left:
            return {}
        head = self.take("lm_head.weight", *embedding.shape)
        if not config.tie_embeddings:
            return {"head.weight": head}
        if torch.equal(head, embedding):
            return {}
        raise CheckpointError(
            "lm_head.weight is not the embedding, though the model is tied; set tie_word_embeddings to false "
            "in config.json if this head is the right one, else delete it from the weights"
        )

    def end(self) -> None:
        """Raise CheckpointError if weights are left, with their names."""
        left = sorted(name for name in self.left if not _BUFFERS.fullmatch(name))
        if left:
            raise CheckpointError(f"this model has no weights {first_names(left)}; {self.where} is of another model")


def weights_from_hf(
    config: ModelConfig,
    theirs: Weights,
    spell: Callable[[str], str] | None = None,
    where: str = CONFIG_JSON,
    transposed: bool = True,
) -> Weights:
    """Convert Hugging Face's state dict to ours, in fp32, with `config.vocab_size` rows of the vocabulary.

    Args:
        config: the config of the model.
        theirs: name -> tensor.
        spell: Hugging Face's name of a weight -> its name in `theirs` (default: the same name).
        where: the file that the config was read from, for errors.
        transposed: whether GPT-2's projections are [in, out], as in its published files.

    Raises CheckpointError naming a weight that is missing, not used, or of another shape.
    """
    width, hidden = config.embed_dim, config.hidden_dim
    if config.position == "learned":
        reading = _Reading("transformer.", theirs, spell, where)
        embedding = reading.take("wte.weight", config.vocab_size or 0, width)
        out = {"positions.weight": reading.take("wpe.weight", config.max_seq_len, width)}
        wide = {"attention.qkv": (width, 3 * width), "feed_forward.up": (width, hidden)}
        shapes = wide | {"attention.out": (width, width), "feed_forward.down": (hidden, width)}
        for kind in ("weight", "bias") if config.bias else ("weight",):
            out[f"norm.{kind}"] = reading.take(f"ln_f.{kind}", width)
            for i in range(config.num_layers):
                for mine, name, matrix in _GPT2:
                    shape = shapes.get(mine, (width,))
                    flip = transposed and matrix and kind == "weight"
                    shape = shape[-1:] if kind == "bias" else shape if flip else shape[::-1]
                    tensor = reading.take(f"h.{i}.{name}.{kind}", *shape)
                    out[f"blocks.{i}.{mine}.{kind}"] = tensor.T.contiguous() if flip else tensor
    else:
        reading = _Reading("model.", theirs, spell, where)
        embedding = reading.take("embed_tokens.weight", config.vocab_size or 0, width)
        out = {"norm.weight": reading.take("norm.weight", width)}
        heads = config.num_heads * config.head_size
        columns = {
            "attention.qkv": width,
            "feed_forward.up": width,
            "attention.out": heads,
            "feed_forward.down": hidden,
        }
        for i in range(config.num_layers):
            for mine, names in _modern(config):
                row = (columns[mine],) if mine in columns else ()
                sizes = zip(names, _rows(config, mine, len(names)), strict=True)
                parts = [reading.take(f"layers.{i}.{name}.weight", rows, *row) for name, rows in sizes]
                out[f"blocks.{i}.{mine}.weight"] = torch.cat(parts)
    head = reading.head(config, embedding)
    reading.end()
    return out | {name: _pad(config, rows) for name, rows in ({"embedding.weight": embedding} | head).items()}


def halves(rows: Tensor, head_size: int, back: bool = False) -> Tensor:
    """Reorder rows of queries or keys [H D, C] from rotary pairs of neighbours to pairs of halves, or `back`."""
    parts = rows.unflatten(0, (-1, *((2, head_size // 2) if back else (head_size // 2, 2))))
    return parts.transpose(1, 2).flatten(0, 2)  # [H, D/2, 2, C] <-> [H, 2, D/2, C]


def cut_vocabulary(config: ModelConfig, ours: Weights, tokens: int) -> tuple[ModelConfig, Weights]:
    """Remove the padding rows of a published model's vocabulary, which have no token and must not be generated."""
    config = config.model_copy(update={"vocab_size": tokens})
    rows = {name: ours[name][:tokens] for name in ("embedding.weight", "head.weight") if name in ours}
    return config, ours | {name: _pad(config, tensor) for name, tensor in rows.items()}


def _rows(config: ModelConfig, name: str, count: int) -> list[int]:
    """The number of rows of each of Qwen3's matrices in our stacked matrix."""
    if name == "attention.qkv":
        key = config.kv_heads * config.head_size
        return [config.num_heads * config.head_size, key, key]
    if name == "feed_forward.up":
        return [config.hidden_dim] * 2
    if name.endswith(("q_norm", "k_norm")):
        return [config.head_size]
    return [config.embed_dim] * count


def _pad(config: ModelConfig, rows: Tensor) -> Tensor:
    """Pad with zeros: [vocab_size, C] -> [padded_vocab_size, C]."""
    return torch.cat([rows, rows.new_zeros(config.padded_vocab_size - rows.shape[0], rows.shape[1])])
