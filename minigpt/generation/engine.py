"""Prefill, then decode: the prompt goes through the model once, then each new token alone, with a key/value cache.

Past the context limit the model reads a window: when it is full, its older half is dropped and the newer half is
prefilled again (`window_start`). The rule depends on the length alone, so cached and uncached generation agree.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import GenerationError
from minigpt.generation.sampling import sample
from minigpt.model import GPT, KVCache


def window_start(length: int, max_seq_len: int) -> int:
    """First position that the model still reads when `length` tokens are there.

    With max_seq_len 8: lengths 0..8 -> 0, 9..12 -> 4, 13..16 -> 8.
    """
    if length <= max_seq_len:
        return 0
    hop = max(1, max_seq_len // 2)
    return -(-(length - max_seq_len) // hop) * hop


def next_logits(model: GPT, tokens: Tensor, cache: KVCache | None) -> Tensor:
    """Logits [B, V] of the token after `tokens` [B, T], reading only the window; the cache follows along.

    Without a cache the whole window is read anew each time: slow, obvious, and equal.
    """
    length = tokens.shape[1]
    start = window_start(length, model.config.max_seq_len)
    if cache is not None and cache.length and start + cache.length == length - 1:
        start = length - 1  # it holds the window but for the newest token
    elif cache is not None:
        cache.length = 0
    hidden = model.hidden(tokens[:, start:], cache)[:, -1]  # [B, C]; the head is large, and no other row is asked for
    return model.head(hidden)[:, : model.config.vocab_size]


@torch.inference_mode()
def generate(
    model: GPT,
    prompt: Tensor,
    config: GenerationConfig,
    eos_id: int | None = None,
    use_cache: bool = True,
) -> Iterator[Tensor]:
    """Yield the next ids [B], one time step after another.

    Args:
        model: in evaluation mode.
        prompt: ids [B, T], T >= 1.
        config: sampling settings; row i draws with seed + i.
        eos_id: a row that has drawn it goes on yielding it; when all have, generation ends.
        use_cache: False reads the whole window anew at every step.

    Raises:
        GenerationError: an empty prompt.
    """
    if prompt.shape[1] == 0:
        raise GenerationError("the prompt is empty; give at least one token")
    device = model.embedding.weight.device
    tokens = torch.nn.functional.pad(prompt.to(device), (0, config.max_new_tokens))  # [B, T + new], filled step by step
    cache = model.make_cache(len(tokens)) if use_cache else None
    generators = [torch.Generator(device).manual_seed(config.seed + row) for row in range(len(tokens))]
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=device)
    for end in range(prompt.shape[1], tokens.shape[1]):
        chosen = sample(next_logits(model, tokens[:, :end], cache), config, generators)  # [B, V] -> [B]
        if eos_id is not None:
            chosen = torch.where(ended, eos_id, chosen)
            ended |= chosen == eos_id
        yield chosen
        if ended.all():
            return
        tokens[:, end] = chosen
