"""Generate ids: prefill (read all prompts once), then decode (one new token at a time, with a key/value cache).

Prompts of one batch may differ in length. They end in the same column, so all rows grow together; the columns before
a shorter prompt are masked. The result of a row does not depend on the other rows.

When the context is full, the older half is dropped and the newer half is prefilled again (`window_start`). This
depends only on a row's length, so generation with and without a cache gives the same ids.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.sampling import NO_RULES, Rules, adjust, sample
from minigpt.model import GPT, KVCache


class Step(NamedTuple):
    """One step: the chosen ids [B], and the model's logits [B, V] from which they were chosen."""

    ids: Tensor
    logits: Tensor


def window_start(length: int, max_seq_len: int) -> int:
    """The first position that the model still reads when the text has `length` tokens.

    With max_seq_len 8: lengths 0..8 -> 0, 9..12 -> 4, 13..16 -> 8.
    """
    if length <= max_seq_len:
        return 0
    hop = max(1, max_seq_len // 2)
    return -(-(length - max_seq_len) // hop) * hop


def id_rows(prompts: Tensor | Sequence[Sequence[int]], model: GPT) -> list[list[int]]:
    """The ids of each prompt. Raises GenerationError: a prompt is empty, or has an id that the model does not have.

    The embedding has more rows than the vocabulary has ids, so a wrong id would not always be an error.
    """
    if isinstance(prompts, Tensor) and prompts.dim() != 2:
        raise GenerationError(f"prompts are ids [B, T], not {list(prompts.shape)}; one prompt alone is ids[None]")
    rows = prompts.tolist() if isinstance(prompts, Tensor) else [list(prompt) for prompt in prompts]
    if not rows or not all(rows):
        raise GenerationError("the prompt is empty; give at least one token")
    last = (model.config.vocab_size or 1) - 1
    if wrong := [id_ for ids in rows for id_ in ids if not 0 <= id_ <= last]:
        raise GenerationError(f"the prompt has the id {int(wrong[0])}; this model has the ids 0 to {last}")
    return rows


class Reader:
    """Reads rows of tokens that grow, each in its own window, and computes only the positions not in the cache.

    Args:
        model: in evaluation mode.
        pads: number of columns before each row's first token.
        use_cache: False reads the whole window again at every step: slow and simple, with the same results.
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
                begin = end - 1  # only the newest column is not in the cache
            else:
                self.cache.length, self.starts = 0, starts
        ragged = [start - first for start in starts]
        pads = torch.tensor(ragged, device=tokens.device) if any(ragged) else None
        hidden = self.model.hidden(tokens[:, begin:], self.cache, pads)[:, -1]  # [B, C]
        return self.model.head(hidden)[:, : self.model.config.vocab_size]

    def select(self, rows: Tensor) -> None:
        """Replace row i by row rows[i]; see `KVCache.select`. The caller selects the rows of its tokens likewise."""
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
    """Yield one step after another.

    Args:
        model: in evaluation mode.
        prompts: B rows of ids, none empty: a tensor [B, T], or lists of any lengths.
        config: sampling settings.
        eos_id: the id that ends a row. An ended row repeats it; generation ends when all rows have ended.
        use_cache: see `Reader`.
        rules: biased and banned ids.
        seeds: one for each row (default: config.seed + row).
        ended: [B] bool; the caller may set a row to True between steps, to end it.

    Raises:
        GenerationError: a prompt is empty, or has an id that the model does not have.
    """
    rows = id_rows(prompts, model)
    rules = replace(rules, eos_id=eos_id) if rules.eos_id is None else rules  # for min_new_tokens
    device, width = model.embedding.weight.device, max(map(len, rows))
    pads = [width - len(row) for row in rows]
    seeds = range(config.seed, config.seed + len(rows)) if seeds is None else seeds
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    padded = [[0] * pad + ids for pad, ids in zip(pads, rows, strict=True)]
    tokens = torch.tensor(padded, dtype=torch.long, device=device)  # [B, T]
    ended = torch.zeros(len(rows), dtype=torch.bool, device=device) if ended is None else ended
    reader = Reader(model, pads, use_cache)
    for end in range(width, width + config.max_new_tokens):
        logits = reader.logits(tokens)
        # a row that has ended gets an empty history, so that no ban leaves it without a token
        lengths = [(pad, pad if over else end) for pad, over in zip(pads, ended.tolist(), strict=True)]
        history = [tokens[row, first:last] for row, (first, last) in enumerate(lengths)]
        chosen = sample(adjust(logits, history, end - width, config, rules), config, generators)  # [B, V] -> [B]
        if eos_id is not None:
            chosen = torch.where(ended, eos_id, chosen)
            ended |= chosen == eos_id
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)  # not allocated at once: max_new_tokens may be huge
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
    """Yield the next ids [B], one step after another. Arguments and errors are those of `steps`."""
    return (step.ids for step in steps(model, prompts, config, eos_id, **options))
