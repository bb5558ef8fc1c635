"""Choose a token from logits in this order: bias, penalties and bans (`adjust`), then `probabilities`, then `draw`.

adjust:
     1. logit_bias
     2. repetition_penalty
     3. frequency_penalty, presence_penalty
     4. no_repeat_ngram_size
     5. bad_words
     6. min_new_tokens
probabilities:
     7. temperature
     8. top_k
     9. top_p
    10. min_p
    11. typical_p

This is the order of Hugging Face's `generate`, so the same settings give the same results there, except that it has no
rule 3. `adjust` raises an error if it bans every token. `probabilities` always keeps at least one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import CheckpointError, GenerationError
from minigpt.generation.sampling.processors import ADJUSTMENTS, CUTS, TINY, Rules, Written

NO_RULES = Rules()


def adjust(logits: Tensor, history: Sequence[Tensor], new: int, config: GenerationConfig, rules: Rules) -> Tensor:
    """Apply bias, penalties and bans to logits [B, V]; returns float32, the same tensor if no setting changes it.

    Args:
        logits: [B, V].
        history: the tokens of each row so far, prompt first.
        new: how many of these tokens were generated; they are the last ones.

    Raises:
        GenerationError: a row has no token left, a bias or penalty overflows, or an id is not in the vocabulary.
        CheckpointError: logits are NaN or infinite.
    """
    start = changed = logits.float()
    low, high = start.aminmax()
    if not (high - low).isfinite():
        raise CheckpointError(
            "the model's logits are NaN or infinite: its weights are damaged, or its training diverged; take "
            "another checkpoint of the run"
        )
    written = Written(history, new, config, rules)
    for change in ADJUSTMENTS.values():
        changed = change(changed, written)
    if changed is not start:
        _check(changed.amax(-1))
    return changed


def _check(largest: Tensor) -> None:
    """Raise an error unless the largest logit of each row, [B], is finite. Otherwise no token could be drawn."""
    if largest.isfinite().all():
        return
    if (largest == float("-inf")).any():
        raise GenerationError(
            "no token is left to write: logit_bias, no_repeat_ngram_size, bad_words and min_new_tokens together ban "
            "every token; loosen one of them"
        )
    raise GenerationError("a logit is infinite or NaN: logit_bias or a penalty is too large; give a smaller one")


def probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution [..., V] from which tokens are drawn. Temperature 0 gives the largest logit probability 1.

    Each row must have a finite logit, which `adjust` guarantees. Then no setting gives NaN.
    """
    logits = logits.float()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits - logits.amax(-1, keepdim=True)  # the largest becomes 0, so no temperature makes it infinite
    logits = logits / max(config.temperature, TINY)
    for name, cut in CUTS.items():
        logits = cut(logits, getattr(config, name))
    return logits.softmax(-1)


def sample(logits: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one id per row: [B, V] -> [B]. Row i draws from generators[i], so it does not depend on the other rows."""
    if config.temperature == 0:
        return logits.argmax(-1)
    chances = probabilities(logits, config)
    return torch.stack([draw(row, generator) for row, generator in zip(chances, generators, strict=True)])


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """Draw an index of weights [V] in proportion to them, as a scalar tensor. Their sum need not be one.

    It looks up a random point in the cumulative sum. For 50,257 weights on a CPU, this takes 0.12 ms and
    torch.multinomial 3.0 ms.
    """
    wide = torch.float32 if weights.device.type == "mps" else torch.float64  # mps has no float64
    sums = weights.to(wide).cumsum(0)
    point = sums[-1] * torch.rand((), generator=generator, device=weights.device)  # below sums[-1]: rand is float32
    return torch.searchsorted(sums, point, right=True).clamp(max=weights.shape[0] - 1)
