"""Contrastive search (Su et al., 2022, section 3.2): the likely token whose hidden state repeats the text least.

Of the top_k likeliest tokens v, the one with the largest

    (1 - penalty_alpha) p(v) - penalty_alpha max_j cos(h_v, h_j)

where h_v is the last hidden state once v is read, and h_j that of each earlier token in the model's window. It is
greedy: temperature and the filters besides top_k take no part. Each candidate is read, so a step costs top_k rows;
the chosen one's keys and values stay, and its row gives the next logits.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.engine import Step, window_start
from minigpt.generation.sampling import NO_RULES, Rules, adjust
from minigpt.model import GPT, KVCache


@torch.inference_mode()
def contrastive_search(
    model: GPT,
    prompts: Sequence[Sequence[int]],
    config: GenerationConfig,
    eos_id: int | None = None,
    *,
    rules: Rules = NO_RULES,
    ended: Tensor | None = None,
) -> Iterator[Step]:
    """Yield one time step after another, as `steps` does; prompts take turns, so none depends on its neighbours.

    Args:
        model: in evaluation mode.
        prompts: rows of ids of any lengths, each of at least one.
        config: top_k, penalty_alpha, max_new_tokens, and what `adjust` reads.
        eos_id: a row that has chosen it goes on yielding it; when all have, generation ends.
        rules: what is allowed, in ids.
        ended: [B] bool; the caller may set a row's True between steps, to end it.

    Raises:
        GenerationError: an empty prompt; settings that leave no token.
    """
    if not prompts or not all(map(len, prompts)):
        raise GenerationError("the prompt is empty; give at least one token")
    device = model.embedding.weight.device
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device) if ended is None else ended
    walks = [_walk(model, prompt, config, rules) for prompt in prompts]
    now = [next(walk) for walk in walks]
    for left in range(config.max_new_tokens - 1, -1, -1):
        chosen = torch.stack([ids for ids, _ in now])  # [B]
        if eos_id is not None:
            chosen = torch.where(ended, eos_id, chosen)
            ended |= chosen == eos_id
        yield Step(chosen, torch.stack([logits for _, logits in now]))
        if not left or ended.all():
            return
        now = [step if done else next(walk) for walk, step, done in zip(walks, now, ended.tolist(), strict=True)]


def _walk(model: GPT, prompt: Sequence[int], config: GenerationConfig, rules: Rules) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (the chosen id [], the logits [V] it was chosen from) without end."""
    limit, vocab_size = model.config.max_seq_len, cast(int, model.config.vocab_size)
    count = min(config.top_k, vocab_size)
    tokens = torch.tensor([*prompt], device=model.embedding.weight.device)
    start, new = window_start(len(tokens), limit), 0
    cache, hidden = _read(model, tokens[start:], count)
    seen, newest = F.normalize(hidden.float(), dim=-1), hidden[-1]
    while True:
        logits = model.head(newest)[:vocab_size]
        allowed = adjust(logits[None], [tokens], new, config, rules)[0]
        chances, candidates = allowed.float().softmax(-1).topk(count)
        moved = window_start(len(tokens) + 1, limit)
        if moved != start:  # the candidates are read in the next window, and so is what they are compared with
            start = moved
            cache, hidden = _read(model, tokens[start:], count)
            seen = F.normalize(hidden.float(), dim=-1)
        hidden = model.hidden(candidates[:, None], cache)[:, 0]  # [K, C]
        direction = F.normalize(hidden.float(), dim=-1)
        likeness = (direction @ seen.T).amax(-1) if len(seen) else torch.zeros_like(chances)  # [K, S] -> [K]
        worth = (1 - config.penalty_alpha) * chances - config.penalty_alpha * likeness
        best = int(worth.masked_fill(allowed[candidates] == float("-inf"), float("-inf")).argmax())
        yield candidates[best], logits
        cache.select(torch.full((count,), best, device=tokens.device))
        tokens, new = torch.cat([tokens, candidates[best : best + 1]]), new + 1
        seen, newest = torch.cat([seen, direction[best : best + 1]]), hidden[best]


def _read(model: GPT, ids: Tensor, rows: int) -> tuple[KVCache, Tensor]:
    """Keys and values of ids [T], `rows` times, and their hidden states [T, C]."""
    cache = model.make_cache()
    hidden = model.hidden(ids[None], cache)[0] if len(ids) else model.embedding.weight[:0]
    cache.select(torch.zeros(rows, dtype=torch.long, device=ids.device))
    return cache, hidden
