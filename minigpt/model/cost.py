"""Count a model's parameters per part, its FLOPs per token, and the shapes inside it, before it takes any memory.

All counts come from the model itself, built on torch's meta device (shapes without numbers). So they stay right when
the model's code changes.
"""

import torch
from torch import nn

from minigpt.config import ModelConfig
from minigpt.model.gpt import GPT


def build_meta(config: ModelConfig) -> GPT:
    """Build the model without memory for its weights."""
    with torch.device("meta"):
        return GPT(config)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Count the parameters of each part. A tied head counts once, with the embedding. "total" is the sum.

    {"embedding": 38597376, "bigrams": 0, "positions": 786432, "attention": 28348416, ..., "total": 124439808}
    The numbers include the padded rows of the vocabulary (GPT-2: 50257 -> 50304).
    """
    model = build_meta(config)
    table = {"embedding": 0, "bigrams": 0, "positions": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    for name, parameter in model.named_parameters():  # yields a tied weight once
        part = next((key for key in table if key in name.split(".")), "norms")
        table[part] += parameter.numel()
    return {**table, "total": sum(table.values())}


def flops_per_token(config: ModelConfig, training: bool = True) -> int:
    """Count floating-point operations per token at full context (PaLM, Chowdhery et al., 2022, appendix B).

    Each weight of a matrix product costs 2 forward and 4 backward. The two products of attention cost
    12 x layers x heads x head_size x T in training. As is usual, this counts scores above the diagonal too.
    """
    model = build_meta(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    weights += (config.softmaxes - 1) * config.padded_vocab_size * config.embed_dim
    attention = 2 * config.num_layers * config.num_heads * config.head_size * config.max_seq_len
    return (6 if training else 2) * (weights + attention)


def up_rows(config: ModelConfig) -> int:
    """Number of outputs of the first matrix of a feed-forward part."""
    return config.hidden_dim * config.gates


def shape_walk(config: ModelConfig) -> list[tuple[str, str, str]]:
    """List (module, input shape, output shape) in order of execution, from a forward pass on the meta device.

    Of the blocks only the first is listed, since all have the same shapes.
    """
    model = build_meta(config)
    rows: list[tuple[str, str, str]] = []

    def watch(name: str):
        def hook(_module, inputs, output):
            rows.append((name, str(list(inputs[0].shape)), str(list(output.shape))))

        return hook

    for name, module in model.named_modules():
        if name and not isinstance(module, nn.ModuleList) and (not name.startswith("blocks.") or ".0" in name):
            module.register_forward_hook(watch(name))
    tokens = torch.zeros(1, config.max_seq_len, dtype=torch.long, device="meta")
    logits = model(tokens)
    rows.append(("logits", str(list(tokens.shape)), str(list(logits.shape))))
    return rows
