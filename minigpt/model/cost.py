"""Count what a model costs before it is built: parameters per part, FLOPs per token, the shapes on the way.

All counts come from the model itself, built on torch's meta device (shapes without numbers), so they cannot drift.
"""

import torch
from torch import nn

from minigpt.config import ModelConfig
from minigpt.model.gpt import GPT


def build_meta(config: ModelConfig) -> GPT:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return GPT(config)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Parameters of each part; a tied head counts once, with the embedding. "total" is the sum.

    {"embedding": 38597376, "bigrams": 0, "positions": 786432, "attention": 28348416, ..., "total": 124439808}
    GPT-2's padded rows (50257 -> 50304) are part of it.
    """
    model = build_meta(config)
    table = {"embedding": 0, "bigrams": 0, "positions": 0, "attention": 0, "feed_forward": 0, "norms": 0, "head": 0}
    for name, parameter in model.named_parameters():  # yields a tied weight once
        part = next((key for key in table if key in name.split(".")), "norms")
        table[part] += parameter.numel()
    return {**table, "total": sum(table.values())}


def flops_per_token(config: ModelConfig, training: bool = True) -> int:
    """Floating-point operations per token at full context (PaLM, Chowdhery et al., 2022, appendix B).

    2 per weight of each matrix product forward, twice that again backward, plus the two products of attention,
    12 x layers x heads x head_size x T in training (counted without the causal half, as the field does).
    """
    model = build_meta(config)
    weights = sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear))
    weights += (config.softmaxes - 1) * config.padded_vocab_size * config.embed_dim
    attention = 2 * config.num_layers * config.num_heads * config.head_size * config.max_seq_len
    return (6 if training else 2) * (weights + attention)


def up_rows(config: ModelConfig) -> int:
    """Outputs of the first matrix of a feed-forward part."""
    return config.hidden_dim * config.gates


def shape_walk(config: ModelConfig) -> list[tuple[str, str, str]]:
    """(module, input shape, output shape) in order of execution, observed in a real forward pass without numbers.

    Only the first block is walked; the others are alike.
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
