"""Find attention heads of four known kinds by measuring where they look.

A head's score for a kind is the share of its attention that goes to the places of that kind, averaged over all
positions that have such a place:

    previous_token    the token before
    first_token       the first token: heads that have nothing to do look there (Xiao et al., 2023: a sink)
    duplicate_token   earlier copies of the same token (Wang et al., 2022, section 3)
    induction         the token after earlier copies: A B ... A -> B (Elhage et al., 2021; Olsson et al., 2022)

Heads are named by their scores on random tokens that are then repeated. There a model can only use the repetition, so
a high score shows a mechanism and not a habit of one text.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from minigpt.errors import UserError
from minigpt.explanation.trace import traced
from minigpt.model import GPT

Floats = npt.NDArray[np.float32]
KINDS = ("previous_token", "first_token", "duplicate_token", "induction")
NAMED_FROM = 0.4
"""Lowest score for which a head gets a name. Chance is about 0.02 to 0.1 (`Heads.chance`); trained heads score near 0
or 0.5 to 1, so the exact threshold matters little."""


@dataclass(frozen=True)
class Heads:
    """Scores of all heads on repeated random tokens."""

    scores: dict[str, Floats]
    """By kind: [L, H] from 0 to 1."""
    chance: dict[str, float]
    """By kind: the score of a head that gives its own and all earlier positions the same weight."""
    sequences: int
    length: int
    """Tokens per sequence; the second half repeats the first."""

    def names(self) -> list[list[str | None]]:
        """[L][H]: `named` of each head."""
        layers, heads = self.scores[KINDS[0]].shape
        return [[self.named(layer, head) for head in range(heads)] for layer in range(layers)]

    def named(self, layer: int, head: int) -> str | None:
        """The kind with the head's highest score, or None if that score is below NAMED_FROM."""
        best = max(KINDS, key=lambda kind: self.scores[kind][layer, head])
        return best if self.scores[best][layer, head] >= NAMED_FROM else None


def places(tokens: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.bool_]]:
    """By kind: [T, T], whether a head of that kind would look from position t (row) at position s (column).

    places([5, 6, 7, 5])["induction"] has one place: position 3 (the second 5) looks at position 1, where 6 followed 5.
    The token itself counts for no kind; the token before counts only for previous_token.
    """
    t, s = np.indices((len(tokens), len(tokens)))
    before = s < t - 1
    same = tokens[:, None] == tokens[None]  # [T, T]
    followed = np.zeros_like(same)
    followed[:, 1:] = same[:, :-1]  # [t, s]: the token before position s equals the token at t
    return {
        "previous_token": s == t - 1,
        "first_token": (s == 0) & before,
        "duplicate_token": same & before,
        "induction": followed & before,
    }


def score_heads(attention: Floats, tokens: npt.NDArray[Any]) -> dict[str, Floats]:
    """By kind: [L, H] scores of recorded attention [L, H, T, T]; NaN if the text has no place of that kind."""
    return {kind: _share(attention, mask) for kind, mask in places(tokens).items()}


def _share(attention: Floats, mask: npt.NDArray[np.bool_]) -> Floats:
    rows = mask.any(1)  # [T]
    if not rows.any():
        return np.full(attention.shape[:2], np.nan, np.float32)
    return np.where(mask[rows], attention[..., rows, :], 0).sum(-1).mean(-1)


def measure_heads(
    model: GPT, *, length: int = 64, sequences: int = 8, seed: int = 0, exclude: Collection[int] = ()
) -> Heads:
    """Score all heads on random tokens, each sequence repeated once (Olsson et al., 2022, "prefix matching score").

    Args:
        model: is not changed.
        length: tokens per sequence, repetition included; fewer if the context or the vocabulary is smaller.
        sequences: number of sequences.
        seed: seed of the random tokens. The tokens of one half are all different.
        exclude: ids that are never drawn, such as special tokens.

    Raises:
        UserError: the context or the vocabulary is too small to repeat anything.
    """
    ids = np.setdiff1d(np.arange(model.config.vocab_size or 0), list(exclude))
    half = min(length // 2, model.config.max_seq_len // 2, len(ids))
    if half < 4:
        raise UserError("head kinds need a context of 8 tokens and 4 ids at least; this model has fewer")
    rng = np.random.default_rng(seed)
    halves = np.stack([rng.permutation(ids)[:half] for _ in range(sequences)])  # [N, T/2]
    tokens = np.concatenate([halves, halves], axis=1)
    with traced(model) as trace:
        model(torch.from_numpy(tokens).to(model.embedding.weight.device))
        layers = [trace.weights(layer) for layer in range(len(trace.queries))]
    attention = torch.stack(layers, dim=1).cpu().numpy()  # [N, L, H, T, T]
    each = [score_heads(rows, row) for rows, row in zip(attention, tokens, strict=True)]
    alike = np.tril(np.ones((2 * half, 2 * half), np.float32))
    alike = (alike / alike.sum(1, keepdims=True))[None, None]  # [1, 1, T, T]
    return Heads(
        scores={kind: np.mean([scores[kind] for scores in each], axis=0) for kind in KINDS},
        chance={kind: float(score[0, 0]) for kind, score in score_heads(alike, tokens[0]).items()},
        sequences=sequences,
        length=2 * half,
    )
