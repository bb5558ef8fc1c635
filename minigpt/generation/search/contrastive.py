"""Choose likely tokens whose hidden states differ most from the text so far: contrastive search.

Source: Su et al., 2022, section 3.2. Among the top_k likeliest tokens v, each step takes the one with the largest

    (1 - penalty_alpha) p(v) - penalty_alpha max_j cos(h_v, h_j)

where h_v is the last hidden state after the model has read v, and h_j that of each earlier token in the model's
window. The search is greedy: it ignores the temperature and all filters except top_k. The model reads every candidate,
so a step costs top_k rows. The keys and values of the chosen one stay in the cache, and its row gives the next logits.
"""

from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.generation.engine import Step, id_rows, window_start
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
    """Yield one step after another, as `steps` does. Each prompt is read on its own, so none depends on the others.

    Args:
        model: in evaluation mode.
        prompts: rows of ids of any lengths, none empty.
        config: top_k, penalty_alpha, max_new_tokens, and the settings that `adjust` reads.
        eos_id: the id that ends a row. An ended row repeats it; generation ends when all rows have ended.
        rules: biased and banned ids.
        ended: [B] bool; the caller may set a row to True between steps, to end it.

    Raises:
        GenerationError: a prompt is empty or has an unknown id, or the settings leave no token.
    """
    prompts = id_rows(prompts, model)
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
    """Yield (chosen id [], logits [V] from which it was chosen), forever."""
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
        if moved != start:  # candidates and the text that they are compared with are read in the same window
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
    """Read ids [T]. Returns a cache that holds them in each of `rows` rows, and their hidden states [T, C]."""
    cache = model.make_cache()
    hidden = model.hidden(ids[None], cache)[0] if len(ids) else model.embedding.weight[:0]
    cache.select(torch.zeros(rows, dtype=torch.long, device=ids.device))
    return cache, hidden
