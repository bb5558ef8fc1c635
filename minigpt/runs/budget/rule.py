"""Choose the settings for a model size and a number of tokens: the rule. `benchmarks/scaling.py` fits the law to it.

    shape        the ladder below, from 2 layers of 32 to 24 of 2,048; heads of 64 (32 below a width of 128)
    context      sqrt(tokens) / 8, to the nearest power of two, 32 to 1,024
    batch        all tokens / steps; a run of D tokens has at most about 400 x (D / 200,000)^0.35 steps
    rates        NorMuon 0.02; AdamW by width (`default_rate`); 20 steps of warm-up, then linearly to 0
    momentum     0.9 in a run of up to 2,000 steps, then Muon's usual 0.95
    weight decay 0.2 if the text is read more than once, else none
    dropout      none up to 4 passes, then 0.1 more for each doubling, at most 0.4; none in a small model
    tokenizer    characters if there are fewer than 100,000, else byte pairs: 512 to 4,096 ids, by the text's size
    masks        up to half of the input tokens, in a second pass of each step, if there is time for twice the steps
    early stop   after 4 evaluations without a better loss, if the text is read more than 4 times

Context and batch follow the experiments of docs/LOG.md: short runs need short contexts and small batches.
"""

import math
from dataclasses import dataclass
from typing import Any

from minigpt.config import ModelConfig
from minigpt.runs.budget.law import STEPS_POWER

LADDER = (
    (2, 32), (2, 48), (2, 64), (2, 96), (3, 96), (3, 128), (4, 128), (4, 192), (6, 192), (6, 256), (6, 384), (8, 512),
    (10, 640), (12, 768), (16, 1024), (20, 1280), (24, 1536), (24, 2048),
)  # fmt: skip
"""(layers, width); each size is about 1.5 to 2 times as large as the one before."""

CHARACTERS = 100_000
"""A text with at least this many characters gets byte pairs: a smaller one shows most pairs too rarely."""
VOCABULARIES = ((500_000, 512), (5_000_000, 1024), (50_000_000, 2048))
"""(largest number of characters, ids of the byte pairs) of a text; 4,096 ids beyond. Only one text was measured
(docs/LOG.md).
"""
MANY_PASSES, PATIENCE = 4, 4
"""Dropout and early stopping begin above this number of passes over a text; a run stops after this many evaluations
without a better loss.
"""
MASKED = 0.5
"""Largest share of masked input tokens, if the run makes many passes and has time left: 0.017 and 0.035
bits per byte better on two texts, for twice the time (docs/LOG.md).
"""
LIKELY = {"schedule.kind": "linear", "train.masked_inputs": MASKED}
"""What a run may get, where it decides whether other settings have an effect. The text decides about the tokenizer."""
DENSE = 2.5
"""If a run makes many passes, a model with more weights in its blocks per token of the text gets dropout. Measured: 8
passes with 2.1 and 20 passes with 1.6 weights per token are better without dropout; 10 passes with 4.7 and 20 with 5.3
are better with it.
"""
MOST_DROPOUT = 0.4
"""The largest dropout, used from 64 passes on. Each mask is drawn once per sequence ("locked"): as good here as a mask
for each number, and the steps are a quarter faster (docs/LOG.md).
"""
FEW_STEPS = 2000
"""Up to this many steps, Muon's momentum is 0.9: 0.02 to 0.05 nats per token better than 0.95 in runs of 500 to 1,100
steps; longer runs were not measured (docs/LOG.md).
"""
SMALL_VOCABULARY = 1024
"""The head has its own weights if there are at most this many ids: 0.035 nats per character better, for few weights."""


@dataclass(frozen=True)
class Size:
    """The size of a model, as far as the cost of a step depends on it.

    parameters: weights of the blocks' matrices, the law's N, which leaves out embedding and head (Kaplan et al., 2020).
    products: weights that a token is multiplied with, including the head's.
    attention: width of the queries, all heads together.
    """

    layers: int
    width: int
    parameters: int
    products: int
    attention: int

    @classmethod
    def of(cls, shape: ModelConfig) -> "Size":
        """The size of a shape whose vocabulary is known."""
        queries = shape.head_size * shape.num_heads
        attention = 2 * shape.embed_dim * (queries + shape.head_size * shape.kv_heads)
        feed_forward = (shape.gates + 1) * shape.embed_dim * shape.hidden_dim
        parameters = shape.num_layers * (attention + feed_forward)
        head = shape.embed_dim * shape.padded_vocab_size
        if shape.softmaxes > 1:
            head = shape.softmaxes * (head + shape.embed_dim * (shape.embed_dim + 1))
        return cls(shape.num_layers, shape.embed_dim, parameters, parameters + head, queries)

    def token_flops(self, seq_len: int) -> int:
        """FLOPs of training per token, equal to `model.cost.flops_per_token`, which builds the model to count them."""
        return 6 * (self.products + 2 * self.layers * self.attention * seq_len)

    def step_flops(self, seq_len: int, batch: int) -> int:
        """FLOPs of an optimizer step. Muon: 5 iterations of three products for each matrix, 26 x width per weight in
        all.
        """
        return batch * seq_len * self.token_flops(seq_len) + 26 * self.width * self.parameters


def heads(width: int) -> int:
    """Heads of 64, or of 32 in a narrow model: heads(48) -> 1, heads(96) -> 3, heads(192) -> 3.

    If they do not divide the width into even heads, there are fewer: heads(200) -> 2.
    """
    most = width // (64 if width >= 128 else 32)
    return next((count for count in range(most, 1, -1) if width % (2 * count) == 0), 1)


def context(tokens: float) -> int:
    """Context for a run of this many tokens: context(200_000) -> 64, context(4e6) -> 256."""
    return min(1024, max(32, 2 ** round(math.log2(max(1.0, tokens) ** 0.5 / 8))))


def smallest_batch(tokens: float, seq_len: int) -> int:
    """Sequences per step, at least 4: the power of two that comes nearest to 400 x (tokens / 200,000)^0.35 steps."""
    steps = 400 * (tokens / 2e5) ** STEPS_POWER
    return max(4, 2 ** round(math.log2(max(1.0, tokens / steps / seq_len))))


def tokenizer(characters: int) -> dict[str, Any]:
    """The tokenizer's settings by dotted name, for a text of this many characters.

    tokenizer(1_115_394) -> {"tokenizer.kind": "bpe", "tokenizer.vocab_size": 1024}
    """
    ids = next((ids for below, ids in VOCABULARIES if characters < below), 4096)
    return {"tokenizer.kind": "char" if characters < CHARACTERS else "bpe", "tokenizer.vocab_size": ids}


def shape(layers: int, width: int, seq_len: int, vocab_size: int) -> dict[str, Any]:
    """The model's settings by dotted name."""
    return {
        "model.num_layers": layers,
        "model.embed_dim": width,
        "model.num_heads": heads(width),
        "model.max_seq_len": seq_len,
        "model.tie_embeddings": vocab_size > SMALL_VOCABULARY,
        "model.zero_init_residual": True,
    }


def dropout(passes: float, density: float) -> float:
    """Dropout for this many passes over a text, and a model with `density` weights per token of it.

    A model with few weights cannot memorise the text, so dropout would only slow its learning.

    dropout(8, 5.0) -> 0.1; dropout(32, 5.0) -> 0.3; dropout(32, 1.0) -> 0.0
    """
    if density <= DENSE:
        return 0.0
    return round(min(MOST_DROPOUT, 0.1 * math.log2(max(passes, MANY_PASSES) / MANY_PASSES)), 2)


def rates(steps: int, epochs: float, density: float) -> dict[str, Any]:
    """The settings that depend on the run's length by dotted name; AdamW's rate keeps its default, which depends on
    the width. `density`: see `dropout`.
    """
    probability = dropout(epochs, density)
    return {
        "model.dropout": probability,
        "model.locked_dropout": ("input", "block") if probability else (),
        "optimizer.kind": "normuon",
        "optimizer.momentum": 0.9 if steps <= FEW_STEPS else 0.95,
        "optimizer.beta2": 0.99,
        "optimizer.weight_decay": 0.2 if epochs > 1 else 0.0,
        "schedule.kind": "linear",
        "schedule.warmup_steps": min(20, max(1, steps // 10)),
        "schedule.min_lr_ratio": 0.0,
        "train.early_stopping": PATIENCE if epochs > MANY_PASSES else None,
    }
