"""The order in which logits become a token: what is allowed (`adjust`), then how bold (`probabilities`), then the draw.

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

This is the order of Hugging Face's `generate`, which has no counterpart of 3: settings carry over. Only `adjust` can
ban every token, and then it raises; `probabilities` always keeps at least one.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from minigpt.config import GenerationConfig
from minigpt.errors import CheckpointError, GenerationError
from minigpt.generation.sampling.processors import ADJUSTMENTS, CUTS, TINY, Rules, Written

NO_RULES = Rules()


def adjust(logits: Tensor, history: Sequence[Tensor], new: int, config: GenerationConfig, rules: Rules) -> Tensor:
    """Logits [B, V] in float32 after bias, penalties and bans; the same tensor where no setting asks for any.

    Args:
        logits: [B, V].
        history: row i's tokens so far, prompt first.
        new: how many of them, at the end, were generated.

    Raises:
        GenerationError: a row in which no token is left, a bias or penalty that overflows, or an id that is not there.
        CheckpointError: logits that are not numbers.
    """
    start = changed = logits.float()
    low, high = start.aminmax()
    if not (high - low).isfinite():
        raise CheckpointError(
            "the model's logits are not finite numbers: its weights are damaged, or its training blew up; take another "
            "checkpoint of the run"
        )
    written = Written(history, new, config, rules)
    for change in ADJUSTMENTS.values():
        changed = change(changed, written)
    if changed is not start:
        _check(changed.amax(-1))
    return changed


def _check(largest: Tensor) -> None:
    """Raise unless the largest logit of each row [B] is a number; only then can a token be drawn."""
    if largest.isfinite().all():
        return
    if (largest == float("-inf")).any():
        raise GenerationError(
            "no token is left to write: logit_bias, no_repeat_ngram_size, bad_words and min_new_tokens together ban "
            "them all; loosen one"
        )
    raise GenerationError(
        "a logit is infinite or not a number: logit_bias or a penalty is too large; give a smaller one"
    )


def probabilities(logits: Tensor, config: GenerationConfig) -> Tensor:
    """The distribution [..., V] that is drawn from; temperature 0 is all on the largest logit.

    Each row needs one finite logit, as `adjust` leaves it; then no setting gives nan.
    """
    logits = logits.float()
    if config.temperature == 0:
        return torch.zeros_like(logits).scatter(-1, logits.argmax(-1, keepdim=True), 1.0)
    logits = logits - logits.amax(-1, keepdim=True)  # the largest is 0, which no divisor makes infinite
    logits = logits / max(config.temperature, TINY)
    for name, cut in CUTS.items():
        logits = cut(logits, getattr(config, name))
    return logits.softmax(-1)


def sample(logits: Tensor, config: GenerationConfig, generators: Sequence[torch.Generator]) -> Tensor:
    """One id a row: [B, V] -> [B]. Row i draws from generators[i], so it does not depend on its neighbours."""
    if config.temperature == 0:
        return logits.argmax(-1)
    chances = probabilities(logits, config)
    return torch.stack([draw(row, generator) for row, generator in zip(chances, generators, strict=True)])


def draw(weights: Tensor, generator: torch.Generator) -> Tensor:
    """An index of weights [V], drawn in proportion, as a scalar; their sum need not be one.

    By the inverse of the running sum: over 50,257 weights torch.multinomial took 3.0 ms on a CPU, this 0.12 ms.
    """
    wide = torch.float32 if weights.device.type == "mps" else torch.float64  # mps has no float64
    sums = weights.to(wide).cumsum(0)
    point = sums[-1] * torch.rand((), generator=generator, device=weights.device)  # below sums[-1]: rand is float32
    return torch.searchsorted(sums, point, right=True).clamp(max=weights.shape[0] - 1)
