"""Compute the next-token loss, divided by the number of valid targets of the whole batch; -100 marks the others."""

import torch.nn.functional as F
from torch import Tensor

IGNORE = -100


def next_token_loss(
    logits: Tensor, targets: Tensor, *, valid: int | Tensor | None = None, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy in nats, summed over the valid targets and divided by `valid`.

    Dividing every micro-batch by the valid targets of the *whole* global batch makes the sum of their gradients
    equal to the gradient of one big batch, even if some micro-batches have more masked targets than others. The
    common way, dividing each by its own count and then by the number of micro-batches, does not.

    Args:
        logits: [B, T, V], any float dtype; the loss is computed in fp32.
        targets: [B, T] ids; -100 means: do not count this one.
        valid: the number to divide by (default: the number of valid targets in `targets`).
        label_smoothing: share of the target's probability that is spread over the vocabulary.

    Returns:
        A scalar; zero if no target is valid.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1).float(),  # [B, T, V] -> [B T, V]
        targets.flatten(),
        ignore_index=IGNORE,
        reduction="sum",
        label_smoothing=label_smoothing,
    )
    if valid is None:
        valid = (targets != IGNORE).sum().clamp(min=1)
    return total / valid
