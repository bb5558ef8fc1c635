"""Prefill, then decode: the prompts go through the model once, then each new token alone, with a key/value cache.

Prompts of one batch may differ in length: their last tokens stand in one column, so that all rows grow together, and
the columns before a shorter one are seen by nobody. What a row gets does not depend on its neighbours.

Past the context limit the model reads a window: when it is full, its older half is dropped and the newer half is
prefilled again (`window_start`). The rule depends on a row's length alone, so cached and uncached generation agree.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.sampling import NO_RULES, Rules, adjust, sample
from minigpt.model import GPT, KVCache


class Step(NamedTuple):
    """One time step: the ids [B] that were chosen, and the model's logits [B, V] that they were chosen from."""

    ids: Tensor
    logits: Tensor


def window_start(length: int, max_seq_len: int) -> int:
    """First position that the model still reads when `length` tokens are there.

    With max_seq_len 8: lengths 0..8 -> 0, 9..12 -> 4, 13..16 -> 8.
    """
    if length <= max_seq_len:
        return 0
    hop = max(1, max_seq_len // 2)
    return -(-(length - max_seq_len) // hop) * hop


class Reader:
    """Reads growing rows of tokens, each by its own window, computing only what the cache does not hold.

    Args:
        model: in evaluation mode.
        pads: columns before each row's first token.
        use_cache: False reads the whole window again at every step: slow, obvious, and equal.
    """

    def __init__(self, model: GPT, pads: Sequence[int], use_cache: bool = True):
        self.model, self.pads = model, pads
        self.cache: KVCache | None = model.make_cache(len(pads)) if use_cache else None
        self.starts: list[int] = []  # first column of each row's window in the cache

    def logits(self, tokens: Tensor) -> Tensor:
        """Logits [B, V] of the token after `tokens` [B, T]."""
        end, limit = tokens.shape[1], self.model.config.max_seq_len
        starts = [pad + window_start(end - pad, limit) for pad in self.pads]
        first = min(starts)
        begin = first
        if self.cache is not None:
            if starts == self.starts and first + self.cache.length == end - 1:
                begin = end - 1  # it holds all but the newest column
            else:
                self.cache.length, self.starts = 0, starts
        ragged = [start - first for start in starts]
        pads = torch.tensor(ragged, device=tokens.device) if any(ragged) else None
        hidden = self.model.hidden(tokens[:, begin:], self.cache, pads)[:, -1]  # [B, C]: the head is large
        return self.model.head(hidden)[:, : self.model.config.vocab_size]

    def select(self, rows: Tensor) -> None:
        """Let row i be what row rows[i] was; see `KVCache.select`. The tokens read next are selected alike."""
        self.pads = [self.pads[row] for row in rows.tolist()]
        self.starts = [self.starts[row] for row in rows.tolist()] if self.starts else []
        if self.cache is not None:
            self.cache.select(rows)


@torch.inference_mode()
def steps(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    config: GenerationConfig,
    eos_id: int | None = None,
    *,
    use_cache: bool = True,
    rules: Rules = NO_RULES,
    seeds: Sequence[int] | None = None,
    ended: Tensor | None = None,
) -> Iterator[Step]:
    """Yield one time step after another.

    Args:
        model: in evaluation mode.
        prompts: B rows of ids, each of at least one; [B, T], or lists of any lengths.
        config: sampling settings.
        eos_id: a row that has drawn it goes on yielding it; when all have, generation ends.
        use_cache: see `Reader`.
        rules: what is allowed, in ids.
        seeds: of each row's draws (default: config.seed + row).
        ended: [B] bool; the caller may set a row's True between steps, to end it.

    Raises:
        GenerationError: an empty prompt.
    """
    rows = prompts.tolist() if isinstance(prompts, Tensor) else [list(prompt) for prompt in prompts]
    if not rows or not all(rows):
        raise GenerationError("the prompt is empty; give at least one token")
    device, width = model.embedding.weight.device, max(map(len, rows))
    pads = [width - len(row) for row in rows]
    seeds = range(config.seed, config.seed + len(rows)) if seeds is None else seeds
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    tokens = torch.zeros(len(rows), width + config.max_new_tokens, dtype=torch.long, device=device)
    for row, ids in enumerate(rows):
        tokens[row, pads[row] : width] = torch.tensor(ids)
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device) if ended is None else ended
    reader = Reader(model, pads, use_cache)
    for end in range(width, tokens.shape[1]):
        logits = reader.logits(tokens[:, :end])
        # a row that has ended has no history: no ban may leave it without a token
        lengths = [(pad, pad if over else end) for pad, over in zip(pads, ended.tolist(), strict=True)]
        history = [tokens[row, first:last] for row, (first, last) in enumerate(lengths)]
        chosen = sample(adjust(logits, history, end - width, config, rules), config, generators)  # [B, V] -> [B]
        if eos_id is not None:
            chosen = torch.where(ended, eos_id, chosen)
            ended |= chosen == eos_id
        tokens[:, end] = chosen
        yield Step(chosen, logits)
        if ended.all():
            return


def generate(
    model: GPT,
    prompts: Tensor | Sequence[Sequence[int]],
    config: GenerationConfig,
    eos_id: int | None = None,
    **options: Any,
) -> Iterator[Tensor]:
    """Yield the next ids [B], one time step after another; arguments and errors as of `steps`."""
    return (step.ids for step in steps(model, prompts, config, eos_id, **options))
