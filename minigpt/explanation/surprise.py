"""Compute how surprised a model is by each token of a text, and which tokens it expected, in one forward pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt.model import GPT


@dataclass(frozen=True)
class Surprise:
    """What a model expected at one position of a text."""

    loss: float | None
    """-ln p of the token, in nats; None for the first token, which is not predicted."""
    rank: int | None
    """1 if this was the likeliest token, 2 for the second likeliest, and so on."""
    likeliest: list[tuple[int, float]]
    """The likeliest tokens at this position, with their probabilities; [] at the first."""


@torch.inference_mode()
def surprises(model: GPT, ids: Sequence[int], top: int = 10) -> list[Surprise]:
    """Surprise at each of 1 to max_seq_len ids, and at the next token after them, which has no loss and no rank.

    `surprises(run.model, run.tokenizer.encode("Once upon a time"))[1].rank`
    """
    device = model.embedding.weight.device
    logits = model(torch.tensor([list(ids)], device=device))[0, :, : model.config.vocab_size].float()  # [T, V]
    log_probs = logits.log_softmax(-1)
    likely = log_probs.topk(min(top, log_probs.shape[-1]), dim=-1)
    own = log_probs[:-1].gather(1, torch.tensor(list(ids[1:]), device=device)[:, None])  # [T - 1, 1]
    ranks = (log_probs[:-1] > own).sum(-1) + 1
    known = zip(own[:, 0].neg().tolist(), ranks.tolist(), strict=True)
    rows = zip(likely.indices.tolist(), likely.values.exp().tolist(), strict=True)
    losses = [*known, (None, None)]
    after = [
        Surprise(loss, rank, list(zip(found, probs, strict=True)))
        for (loss, rank), (found, probs) in zip(losses, rows, strict=True)
    ]
    return [Surprise(None, None, []), *after]
