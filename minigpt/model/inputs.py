"""What is added to a token's embedding before the first block: positions, and where a recipe asks for them, bigrams.

Each is a module of the model under its own name. To add one: a class, a row in `INPUTS`, and its setting in the config.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.cache import KVCache

Places = Tensor | slice
"""Positions of the tokens at hand: the same for all rows, or [B, T] where each row has its own."""


class Table(nn.Embedding):
    """An embedding whose numbers are drawn by `GPT.initialise` only.

    torch would draw them before; for a model on the meta device, that alone imports its compiler: two seconds.
    """

    def reset_parameters(self) -> None:
        """Draw nothing."""


MASKED = -1
"""An id that stands for a token which the model shall not see, once it has its `take_masks`: it has no embedding."""


class MaskableTable(Table):
    """An embedding in which `MASKED` is zero."""

    def forward(self, tokens: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """[B, T] -> [B, T, C]."""
        hidden = tokens == MASKED
        return super().forward(tokens.masked_fill(hidden, 0)).masked_fill(hidden[..., None], 0.0)


class Positions(Table):
    """A learned vector for each position (Radford et al., 2018)."""

    looks_back = False

    def __init__(self, config: ModelConfig):
        super().__init__(config.max_seq_len, config.embed_dim)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, places: Places, cache: KVCache | None = None
    ) -> Tensor:
        """[T, C], or [B, T, C]."""
        return self.weight[places]


class Sinusoids(nn.Module):
    """Fixed vectors (Vaswani et al., 2017, section 3.5)."""

    table: Tensor  # [max_seq_len, C]
    looks_back = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.register_buffer("table", sinusoids(config.max_seq_len, config.embed_dim), persistent=False)

    def forward(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """[T, C], or [B, T, C]."""
        return self.table[places]


class Bigrams(Table):
    """A second embedding, of each token with the one before it; where pairs are more than rows, they share by a hash.

    `looks_back` says that a token alone is not enough: the cache keeps the ids, and no graph is recorded.
    """

    looks_back = True
    step = ("bigram", "B", "row of this token and the one before it, in a second table")
    """For the walk through a model: its name, its letter, what it is."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.bigrams, config.embed_dim)
        self.none = cast(int, config.vocab_size)  # stands before the first token

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, places: Places, cache: KVCache | None = None
    ) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return super().forward(self.rows(tokens, places, cache))

    def rows(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """Rows [B, T] of the table."""
        before = nn.functional.pad(tokens, (1, -1), value=self.none)  # one place to the right
        if cache is not None:
            held = cache.kept_tokens()
            before[:, 0] = held[:, cache.length - 1] if cache.length else self.none
            held[:, cache.length : cache.length + tokens.shape[1]] = tokens
        if isinstance(places, Tensor):
            before = before.masked_fill(places == 0, self.none)
        return (before * self.none + tokens) % self.num_embeddings


class MaskableBigrams(Bigrams):
    """Bigrams in which no pair with `MASKED` has a row."""

    def forward(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        hidden = tokens == MASKED
        paired = hidden | nn.functional.pad(hidden, (1, -1))  # it, or the one before it
        return super().forward(tokens, places, cache).masked_fill(paired[..., None], 0.0)


def sinusoids(length: int, size: int) -> Tensor:
    """The fixed position table [length, size]: sines in even columns, cosines in odd (Vaswani et al., 2017, 3.5)."""
    if torch.get_default_device().type == "meta":  # only the shape counts, and `arange` there imports torch's compiler
        return torch.empty(length, size)
    wavelengths = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    angles = torch.arange(length)[:, None] * wavelengths  # [T, C/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [T, C/2, 2] -> [T, C]


INPUTS: dict[str, tuple[Callable[[ModelConfig], bool], Callable[[ModelConfig], nn.Module]]] = {
    "bigrams": (lambda config: config.bigrams > 0, Bigrams),
    "positions": (lambda config: config.position == "learned", Positions),
    "sinusoids": (lambda config: config.position == "sinusoidal", Sinusoids),
}
"""Name in the model -> whether a config asks for it, and what makes it; in the order in which they are added."""


def make_inputs(config: ModelConfig) -> dict[str, nn.Module]:
    """The modules that a model of this config has, by name."""
    return {name: make(config) for name, (wanted, make) in INPUTS.items() if wanted(config)}


def take_masks(model: nn.Module, config: ModelConfig) -> None:
    """Put embeddings that know `MASKED` in place of a built model's own, with the same weights."""
    swaps: dict[str, nn.Embedding] = {"embedding": MaskableTable(config.padded_vocab_size, config.embed_dim)}
    if config.bigrams:
        swaps["bigrams"] = MaskableBigrams(config)
    for name, table in swaps.items():
        table.weight = getattr(model, name).weight
        setattr(model, name, table)
