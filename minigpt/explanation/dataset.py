"""Measure what a model finds hard or easy in a whole text, and which passages are copied from its training text.

The functions map arrays to arrays; `survey` puts their results into one JSON object (docs/explain.md).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from minigpt.data import windows
from minigpt.data.counts import token_counts
from minigpt.explanation.analysis import token_text
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.tokenizers import Tokenizer
from minigpt.training.step import target_losses

Ids = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
CHUNK = 1 << 20  # ids hashed at a time


def token_losses(model: GPT, tokens: Ids, progress: Callable[[int, int], None] | None = None) -> Floats:
    """Losses [N - 1] in nats for tokens[1:], in windows of the model's context that do not overlap.

    Their mean is the loss that `minigpt eval` reports. It is computed in fp32.

    Raises:
        DataError: fewer than two tokens.
    """
    size, runtime = model.config.max_seq_len, Runtime(model.embedding.weight.device, "fp32")
    batches = ((inputs[None], targets[None]) for inputs, targets in windows(tokens, size, size))
    parts: list[Floats] = []
    for at, (_, nats) in enumerate(target_losses(model, batches, runtime)):
        parts.append(nats[0].numpy())
        if progress:
            progress(min((at + 1) * size, len(tokens) - 1), len(tokens) - 1)
    return np.concatenate(parts)


def loss_by_position(losses: Floats, context: int) -> Floats:
    """Mean loss [min(context, N)] of the tokens with 1, 2, ... tokens before them in the window: whether more helps."""
    places = np.arange(len(losses)) % context
    return np.bincount(places, losses) / np.bincount(places)


def loss_by_frequency(losses: Floats, targets: Ids, counts: Ids) -> list[dict[str, float]]:
    """Mean loss of tokens that occur 0 times, once, 2 or 3 times, 4 to 7 times and so on in the training text.

    Args:
        losses, targets: [N], the losses of the tokens and their ids.
        counts: [V], how often each id is in the training text.

    Returns:
        A list of {seen_from, seen_to, tokens, loss}, without empty ranges.
    """
    order = np.ceil(np.log2(counts[targets] + 1)).astype(np.int64)  # 0 -> 0, 1 -> 1, 2 and 3 -> 2, 4 to 7 -> 3
    found = []
    for power in np.unique(order).tolist():
        there = order == power
        low, high = (2 ** (power - 1), 2**power - 1) if power else (0, 0)
        found.append(
            {"seen_from": low, "seen_to": high, "tokens": int(there.sum()), "loss": float(losses[there].mean())}
        )
    return found


def most_surprising(
    losses: Floats, tokens: Ids, tokenizer: Tokenizer, count: int = 20, around: int = 20
) -> list[dict[str, Any]]:
    """List the tokens that the model expected least, with context: {at, text, before, after, loss}.

    Args:
        losses: [N - 1], losses of tokens[1:].
        around: number of context tokens on each side.
    """
    found = []
    for at in (np.argsort(losses)[::-1][:count] + 1).tolist():
        before, after = tokens[max(0, at - around) : at], tokens[at + 1 : at + 1 + around]
        found.append(
            {
                "at": at,
                "text": token_text(tokenizer, int(tokens[at])),
                "before": tokenizer.decode(before, skip_special=False),
                "after": tokenizer.decode(after, skip_special=False),
                "loss": float(losses[at - 1]),
            }
        )
    return found


@torch.no_grad()
def neighbours(model: GPT, ids: Ids, count: int = 8) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Find the nearest other ids by the cosine of their embeddings: (ids [N, count], cosines [N, count])."""
    table = F.normalize(model.embedding.weight[: model.config.vocab_size].float(), dim=-1)  # [V, C]
    rows = torch.tensor(list(map(int, ids)), device=table.device)
    cosines = table[rows] @ table.T  # [N, V]
    cosines[torch.arange(len(rows)), rows] = -2  # not itself
    best = cosines.topk(min(count, len(table) - 1), dim=-1)
    return best.indices.cpu().numpy(), best.values.cpu().numpy()


@dataclass(frozen=True)
class Span:
    """Tokens [start, start + length) of a text are equal to tokens [place, place + length) of another text."""

    start: int
    length: int
    place: int
    times: int
    """How often the other text contains exactly these tokens."""


def memorised_spans(text: Ids, training: Ids, shortest: int = 16) -> list[Span]:
    """Find the longest exact matches of a text with the training text, longest first, none inside another.

    Each sequence of `shortest` ids is hashed, in the text and in the training text. The training text is read once, in
    chunks (it may be memory-mapped). If hashes agree, the ids are compared too. Consecutive hits are joined to longer
    matches.

    Args:
        text: [n] ids.
        training: [N] ids.
        shortest: smallest number of tokens in a match.
    """
    text = np.asarray(text, np.int64)
    if len(text) < shortest:
        return []
    hashes = _rolling(text, shortest)
    order = np.argsort(hashes, kind="stable")
    pairs = list(_hits(text, training, hashes, order, shortest))
    if not pairs:
        return []
    starts, places = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return _longest(len(text), starts, places, shortest)


def _rolling(ids: Ids, length: int) -> npt.NDArray[np.uint64]:
    """[n] -> [n - length + 1]: a hash of each sequence of `length` ids, a polynomial modulo 2^64 by Horner's rule."""
    wide = ids.astype(np.uint64) + np.uint64(1)
    count = len(ids) - length + 1
    found = np.zeros(count, np.uint64)
    for offset in range(length):
        found = found * np.uint64(0x9E3779B97F4A7C15) + wide[offset : offset + count]
    return found


def _hits(
    text: Ids, training: Ids, hashes: npt.NDArray[np.uint64], order: Ids, length: int
) -> Iterator[tuple[Ids, Ids]]:
    """Yield (starts in the text, places in the training text) of equal sequences, for one chunk after another."""
    ordered = hashes[order]
    for begin in range(0, max(0, len(training) - length + 1), CHUNK):
        chunk = np.asarray(training[begin : begin + CHUNK + length - 1], np.int64)
        theirs = _rolling(chunk, length)
        first, last = np.searchsorted(ordered, theirs, "left"), np.searchsorted(ordered, theirs, "right")
        times = last - first  # a sequence may be in the text more than once
        places = np.repeat(np.arange(len(theirs)), times)
        within = np.arange(len(places)) - np.repeat(np.cumsum(times) - times, times)
        starts = order[np.repeat(first, times) + within]
        same = np.ones(len(starts), bool)  # hashes may collide
        for offset in range(length):
            same &= text[starts + offset] == chunk[places + offset]
        yield starts[same], places[same] + begin


def _longest(length: int, starts: Ids, places: Ids, shortest: int) -> list[Span]:
    """Join hits with the same place - start to spans, and keep the spans that no other span covers."""
    order = np.lexsort((starts, places - starts))
    starts, places = starts[order], places[order]
    new = np.ones(len(starts), bool)
    new[1:] = (np.diff(places - starts) != 0) | (np.diff(starts) != 1)
    begins = np.flatnonzero(new)
    lengths = np.diff(np.append(begins, len(starts))) + shortest - 1
    starts, places = starts[begins], places[begins]
    kept: list[Span] = []
    covered = np.zeros(length, np.int64)  # by position: the furthest end of a kept span that contains it
    for at in np.lexsort((places, starts, -lengths)).tolist():
        start, end = int(starts[at]), int(starts[at] + lengths[at])
        if covered[start] >= end:
            continue
        covered[start:end] = np.maximum(covered[start:end], end)
        times = int(((starts <= start) & (starts + lengths >= end)).sum())
        kept.append(Span(start, end - start, int(places[at]), times))
    return kept


def describe_spans(spans: list[Span], text: Ids, tokenizer: Tokenizer) -> list[dict[str, Any]]:
    """Spans as plain objects: {start, length, place, times, text}."""
    return [
        {
            **vars(span),
            "text": tokenizer.decode(text[span.start : span.start + span.length], skip_special=False),
        }
        for span in spans
    ]


SURVEY_KEYS = (
    "run", "step", "tokens", "context", "loss", "loss_by_position", "loss_by_frequency", "surprising", "neighbours",
    "text", "spans",
)  # fmt: skip


def survey(
    model: GPT,
    tokenizer: Tokenizer,
    training: Ids,
    held_out: Ids,
    text: str,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """All of this module's figures as one JSON object; see docs/explain.md.

    Args:
        training: [N] ids on which the model was trained.
        held_out: ids to score.
        text: any text, for example one that the model generated. The survey finds passages of it that are copied from
            the training text; the shortest are about 24 bytes long.
        progress: see `token_losses`.
    """
    losses = token_losses(model, held_out, progress=progress)
    counts = token_counts(training, tokenizer.vocab_size)
    ids = np.asarray(tokenizer.encode(text), np.int64)
    frequent = np.argsort(-counts)[: min(24, tokenizer.vocab_size)]
    near, cosines = neighbours(model, frequent)
    shortest = max(4, round(24 * len(ids) / max(1, len(text.encode()))))
    return {
        "run": "",
        "step": 0,
        "tokens": len(losses),
        "context": model.config.max_seq_len,
        "loss": float(losses.mean()),
        "loss_by_position": loss_by_position(losses, model.config.max_seq_len).tolist(),
        "loss_by_frequency": loss_by_frequency(losses, np.asarray(held_out[1:], np.int64), counts),
        "surprising": most_surprising(losses, held_out, tokenizer),
        "neighbours": [
            {
                "text": token_text(tokenizer, int(id_)),
                "times": int(counts[id_]),
                "near": [
                    {"text": token_text(tokenizer, int(other)), "cosine": round(float(cosine), 4)}
                    for other, cosine in zip(others, row, strict=True)
                ],
            }
            for id_, others, row in zip(frequent, near, cosines, strict=True)
        ],
        "text": text,
        "spans": describe_spans(memorised_spans(ids, training, shortest), ids, tokenizer),
    }
