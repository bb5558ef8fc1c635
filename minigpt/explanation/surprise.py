"""How surprised a model is by each token of a text, and what it expected there: one pass, and nothing else is kept."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from minigpt.model import GPT


@dataclass(frozen=True)
class Surprise:
    """What a model expected at one token of a text."""

    loss: float | None
    """-ln p of the token, in nats; None of the first, which nothing predicts."""
    rank: int | None
    """1 where the model held it for the likeliest."""
    likeliest: list[tuple[int, float]]
    """The likeliest tokens at its place, with their probabilities; [] at the first."""


@torch.inference_mode()
def surprises(model: GPT, ids: Sequence[int], top: int = 10) -> list[Surprise]:
    """For each of 1 to max_seq_len ids, and for the token that would come after them, which has neither loss nor rank.

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
