"""Define what is added to the token embedding before the first block: positions, and bigrams if the config has them.

Each is a module of the model under its own name. To add one, write a class, a row in `INPUTS`, and a setting in the
config.
"""

import math
from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn

from minigpt.config import ModelConfig
from minigpt.model.cache import KVCache

Places = Tensor | slice
"""Positions of the tokens: a slice if all rows have the same ones, else a tensor [B, T]."""


class Table(nn.Embedding):
    """An embedding whose weights are drawn only by `GPT.initialise`.

    torch would draw them too. On the meta device this would import torch's compiler, which takes two seconds.
    """

    def reset_parameters(self) -> None:
        """Do nothing."""


MASKED = -1
"""The id of a token that the model must not see. It has no embedding; the model needs `take_masks` to accept it."""


class MaskableTable(Table):
    """An embedding that is zero for `MASKED`."""

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
    """A fixed vector for each position (Vaswani et al., 2017, section 3.5)."""

    table: Tensor  # [max_seq_len, C]
    looks_back = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.register_buffer("table", sinusoids(config.max_seq_len, config.embed_dim), persistent=False)

    def forward(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """[T, C], or [B, T, C]."""
        return self.table[places]


class Bigrams(Table):
    """A second embedding: one row for each token together with the token before it.

    If there are more pairs than rows, a hash decides which pairs share a row.

    `looks_back` says that this input needs earlier tokens: the cache keeps the ids, and no CUDA graph is recorded.
    """

    looks_back = True
    step = ("bigram", "B", "row of this token and the one before it, in a second table")
    """Its name, its letter and its description, shown by `minigpt explain`."""

    def __init__(self, config: ModelConfig):
        super().__init__(config.bigrams, config.embed_dim)
        self.none = cast(int, config.vocab_size)  # the id used as the token before the first one

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, tokens: Tensor, places: Places, cache: KVCache | None = None
    ) -> Tensor:
        """[B, T] -> [B, T, C]."""
        return super().forward(self.rows(tokens, places, cache))

    def rows(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """The row of the table for each token, [B, T]."""
        before = nn.functional.pad(tokens, (1, -1), value=self.none)  # one place to the right
        if cache is not None:
            held = cache.kept_tokens()
            before[:, 0] = held[:, cache.length - 1] if cache.length else self.none
            held[:, cache.length : cache.length + tokens.shape[1]] = tokens
        if isinstance(places, Tensor):
            before = before.masked_fill(places == 0, self.none)
        return (before.long() * self.none + tokens) % self.num_embeddings  # int32 would overflow


class MaskableBigrams(Bigrams):
    """Bigrams that are zero for pairs with `MASKED`."""

    def forward(self, tokens: Tensor, places: Places, cache: KVCache | None = None) -> Tensor:
        """[B, T] -> [B, T, C]."""
        hidden = tokens == MASKED
        paired = hidden | nn.functional.pad(hidden, (1, -1))  # this token or the one before it is masked
        return super().forward(tokens, places, cache).masked_fill(paired[..., None], 0.0)


def sinusoids(length: int, size: int) -> Tensor:
    """The fixed position table [length, size]: sines in even columns, cosines in odd (Vaswani et al., 2017, 3.5)."""
    if torch.get_default_device().type == "meta":  # only the shape matters; `arange` would import torch's compiler
        return torch.empty(length, size)
    wavelengths = torch.exp(torch.arange(0, size, 2) * (-math.log(10000.0) / size))
    angles = torch.arange(length)[:, None] * wavelengths  # [T, C/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)  # [T, C/2, 2] -> [T, C]


INPUTS: dict[str, tuple[Callable[[ModelConfig], bool], Callable[[ModelConfig], nn.Module]]] = {
    "bigrams": (lambda config: config.bigrams > 0, Bigrams),
    "positions": (lambda config: config.position == "learned", Positions),
    "sinusoids": (lambda config: config.position == "sinusoidal", Sinusoids),
}
"""Name in the model -> (whether a config asks for it, the class that makes it). They are added in this order."""


def make_inputs(config: ModelConfig) -> dict[str, nn.Module]:
    """Make the input modules of a model with this config, by name."""
    return {name: make(config) for name, (wanted, make) in INPUTS.items() if wanted(config)}


def take_masks(model: nn.Module, config: ModelConfig) -> None:
    """Replace a built model's embeddings by ones that accept `MASKED`, with the same weights."""
    swaps: dict[str, nn.Embedding] = {"embedding": MaskableTable(config.padded_vocab_size, config.embed_dim)}
    if config.bigrams:
        swaps["bigrams"] = MaskableBigrams(config)
    for name, table in swaps.items():
        table.weight = getattr(model, name).weight
        setattr(model, name, table)
