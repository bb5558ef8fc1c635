"""The next-token loss of a large vocabulary, without its logits: `losses.next_token_loss` is the readable form."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from minigpt.losses import IGNORE, next_token_loss


def head_loss(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    vocab_size: int,
    *,
    valid: int | Tensor,
    label_smoothing: float = 0.0,
    chunk: int | None = None,
    terms: "Terms | None" = None,
) -> Tensor:
    """`next_token_loss(head(hidden)[..., :vocab_size], targets)`, without ever holding all logits if they are many.

    Args:
        head: [.., C] -> [.., V or more]; a plain linear layer without bias is read in chunks, all else at once.
        hidden: [B, T, C].
        targets: [B, T] ids, -100 where not counted.
        valid, label_smoothing: as in `next_token_loss`.
        chunk: most logits at once (default: `chunk_logits`).
        terms: `loss_terms`, or its compiled form.
    """
    chunk = chunk or chunk_logits(hidden.device)
    few = targets.numel() * vocab_size <= (chunk if terms is None else chunk // 16)  # compiled, it pays earlier
    if few or type(head) is not nn.Linear:
        logits = head(hidden)[..., :vocab_size]
        return next_token_loss(logits, targets, valid=valid, label_smoothing=label_smoothing)
    rows = max(1, chunk // vocab_size)
    total = _ChunkedLoss.apply(
        hidden.flatten(0, 1), head.weight, targets.flatten(), vocab_size, rows, label_smoothing, terms or loss_terms
    )
    return cast(Tensor, total) / valid


def chunk_logits(device: torch.device) -> int:
    """Most logits that a loss holds at once: 128 MiB in fp32 on a CPU, a GiB elsewhere."""
    return 1 << 25 if device.type == "cpu" else 1 << 28


def loss_terms(logits: Tensor, ids: Tensor, vocab_size: int, smoothing: float) -> Tensor:
    """The sum of the cross-entropies; the logits become its gradient, softmax(logits) - target, in their own memory.

    Args:
        logits: [n, V or more]; the columns past V are padding: they count for nothing, and their gradient is zero.
        ids: [n], -100 where not counted.
    """
    columns = torch.arange(logits.shape[1], device=ids.device)
    counted, ids = (ids != IGNORE)[:, None], ids.clamp(min=0)[:, None]  # [n, 1]
    real = logits.float()  # in fp32, the logits themselves
    real[:, vocab_size:] = float("-inf")
    log_sum = real.logsumexp(-1, keepdim=True)
    wanted = (1 - smoothing) * real.gather(1, ids)
    if smoothing:
        wanted = wanted + smoothing * real[:, :vocab_size].mean(-1, keepdim=True)
    total = ((log_sum - wanted) * counted).sum()
    real.sub_(log_sum).exp_().sub_((columns == ids) * (1 - smoothing))
    if smoothing:
        real[:, :vocab_size] -= smoothing / vocab_size
    logits.copy_(real.mul_(counted))
    return total


class _ChunkedLoss(torch.autograd.Function):
    """Some rows at a time; the gradient is made at once, while the logits are there.

    The backward pass has nothing left but to scale it: the logits are multiplied out once, not twice as with
    recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        vocab_size: int,
        rows: int,
        smoothing: float,
        terms: "Terms",
    ) -> Tensor:
        """[N, C], [V or more, C], [N] -> a scalar."""
        autocast, device = torch.is_autocast_enabled(hidden.device.type), hidden.device.type
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        hidden, low = hidden.to(dtype), weight.to(dtype)  # once, not in every product
        d_hidden, d_weight = torch.empty_like(hidden), None
        # one piece of memory for all logits: fresh pages cost a CPU as much as the product that fills them
        room = hidden.new_empty(min(rows, len(hidden)), len(low))
        total = hidden.new_zeros((), dtype=torch.float32)
        for some, ids, out in zip(hidden.split(rows), targets.split(rows), d_hidden.split(rows), strict=True):
            grad = torch.mm(some, low.T, out=room[: len(some)])
            total += terms(grad, ids, vocab_size, smoothing)
            if any(ctx.needs_input_grad):
                torch.mm(grad, low, out=out)
                d_weight = (grad.T @ some).to(weight.dtype) if d_weight is None else d_weight.add_(grad.T @ some)
        ctx.save_for_backward(d_hidden, d_weight)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of hidden and weight."""
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale, d_weight.mul_(scale), None, None, None, None, None


Terms = Callable[[Tensor, Tensor, int, float], Tensor]
