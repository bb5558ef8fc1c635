"""Compute the next-token loss of a large vocabulary in pieces, so that not all logits are in memory at once.

`loss.next_token_loss` is the readable form.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from minigpt.model.heads import Mixture, output_matrix
from minigpt.model.kernels import fused
from minigpt.model.loss import IGNORE, next_token_loss
from minigpt.model.shared_row import SharedRow


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
    shared: SharedRow | None = None,
) -> Tensor:
    """`next_token_loss(head(hidden)[..., :vocab_size], targets)`; if there are many logits, they are made in pieces.

    Args:
        head: [.., C] -> [.., V or more]; a plain linear layer without bias and a mixture are computed in pieces, any
            other head at once.
        hidden: [B, T, C].
        targets: [B, T] ids, -100 where not counted.
        valid, label_smoothing: as in `next_token_loss`.
        chunk: most logits at once (default: `chunk_logits`).
        terms: a compiled form of `loss_terms`; on a CPU the kernels in C are used instead if they work there.
        shared: the ids that share a row of the head. None of them may be a target, and label_smoothing must be 0.
            The head must be linear or a mixture.
    """
    chunk = chunk or chunk_logits(hidden.device)

    def whole(hidden: Tensor, targets: Tensor) -> Tensor:
        return next_token_loss(head(hidden)[..., :vocab_size], targets, valid=valid, label_smoothing=label_smoothing)

    copies = head.count if isinstance(head, Mixture) else 1
    if shared is None and at_once(targets.numel() * vocab_size * copies, chunk):
        return whole(hidden, targets)
    hidden, targets = hidden.flatten(0, 1), targets.flatten()
    if isinstance(head, Mixture):
        if label_smoothing or type(head.logits) is not nn.Linear:  # smoothing needs all of the log-probabilities
            rows = max(1, chunk // (vocab_size * copies))
            pieces = zip(hidden.split(rows), targets.split(rows), strict=True)
            losses = [checkpoint(whole, some[None], wanted[None], use_reentrant=False) for some, wanted in pieces]
            return torch.stack(cast(list[Tensor], losses)).sum()
        hidden, shares = (part.flatten(0, 1) for part in head.turned(hidden))  # [N, K, C or 1] -> [N K, C or 1]
        targets = targets.repeat_interleave(copies)
    elif type(head) is nn.Linear:
        shares = None
    else:
        return whole(hidden[None], targets[None])
    # Inside `no_grad` a parameter still says that it needs a gradient, which would take two of the three products.
    weight = output_matrix(head).weight
    weight = weight if torch.is_grad_enabled() else weight.detach()
    extra = 0.0
    if shared is not None:
        weight, targets = shared.weight(weight), shared.targets(targets)
        vocab_size, extra = shared.count, shared.extra
    total = _ChunkedLoss.apply(
        hidden, weight, targets, shares, copies, vocab_size, chunk, label_smoothing, extra, terms
    )
    return cast(Tensor, total) / valid


def chunk_logits(device: torch.device) -> int:
    """Most logits in memory at once: 32 MiB in fp32 on a CPU, 1 GiB elsewhere (docs/LOG.md)."""
    return 1 << 23 if device.type == "cpu" else 1 << 28


def at_once(logits: int, chunk: int) -> bool:
    """Whether this number of logits is made at once; for a small number, pieces are not faster."""
    return logits <= chunk // 4


def loss_terms(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Replace logits [n, V] by exp(logit - the row's largest logit), in place.

    Returns each row's largest logit and its sum of exponentials, [n, 1] in fp32.
    """
    largest = logits.amax(-1, keepdim=True)
    if logits.dtype == torch.float32:
        logits.sub_(largest).exp_()
    else:
        logits.copy_((logits.float() - largest).exp())
    return largest.float(), logits.sum(-1, keepdim=True, dtype=torch.float32)


def kernels_for(device: torch.device, dtype: torch.dtype) -> fused.Kernels | None:
    """The C kernels that compute `loss_terms` for logits of this dtype; None if torch computes it."""
    return fused.library() if device.type == "cpu" and dtype in fused.EXPONENTIALS else None


def piece(tokens: int, vocab_size: int, chunk: int, dtype: torch.dtype, in_c: bool) -> int:
    """The number of tokens whose logits are in memory at once; all pieces but the last have this length.

    The C kernels do not convert bf16 logits to fp32, so four times as many logits fit. With fewer pieces, the head's
    gradient (summed in fp32) is read and written less often (docs/LOG.md).
    """
    most = max(1, (4 * chunk if in_c and dtype == torch.bfloat16 else chunk) // vocab_size)
    return -(-tokens // -(-tokens // most))


class _ChunkedLoss(torch.autograd.Function):
    """Computes a few rows at a time. The forward pass also computes the gradient, while it has the exponentials.

    The gradient of a row's logits is exponentials / their sum - target. There are many logits, so the division and the
    subtraction are not done on them: instead the matrix products are divided by the row's sum, and the target's part is
    a separate product (the target's exponential is set to zero). So the backward pass only scales the gradient, and no
    logits are computed twice.

    A mixture has K rows per token, and the loss -ln(sum over k of share_k p_k(target)). The gradient of row k is that
    of its own loss, times the part that k has in this sum.

    `extra` is added to the last logit, which may stand for several ids (`SharedRow`).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        shares: Tensor | None,
        copies: int,
        vocab_size: int,
        chunk: int,
        smoothing: float,
        extra: float,
        compiled: "Terms | None",
    ) -> Tensor:
        """[N K, C], [V or more, C], [N K], ln of the shares [N K, 1] or None if K is 1 -> a scalar."""
        autocast, device = torch.is_autocast_enabled(hidden.device.type), hidden.device.type
        dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        hidden, low = hidden.to(dtype), weight.to(dtype)  # once, not in every product
        counted, ids = (targets != IGNORE)[:, None].float(), targets.clamp(min=0)[:, None]  # [N K, 1]
        to_learn, d_shares = any(ctx.needs_input_grad), None if shares is None else torch.empty_like(shares)
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight) if ctx.needs_input_grad[1] else None
        pulls = torch.empty_like(counted)  # gradient of the target's logit
        kernels = kernels_for(hidden.device, dtype)
        terms = compiled or loss_terms if kernels is None else partial(fused.exponentials, kernels=kernels)
        rows = copies * piece(len(hidden) // copies, copies * vocab_size, chunk, dtype, kernels is not None)
        room = hidden.new_empty(rows, len(low))  # for all pieces: on a CPU new pages take as long as the product
        places, total = torch.arange(rows, device=room.device), hidden.new_zeros((), dtype=torch.float32)
        for start in range(0, len(hidden), rows):
            part = slice(start, start + rows)
            some, wants, count = hidden[part], ids[part], counted[part]
            logits = torch.mm(some, low.T, out=room[: len(some)])
            logits[:, vocab_size:] = float("-inf")  # padding: not in the loss, with zero gradient
            if extra:
                logits[:, vocab_size - 1] += extra
            wanted = logits.gather(1, wants).float()
            mean = logits[:, :vocab_size].float().mean(-1, keepdim=True) if smoothing else 0.0
            largest, sums = terms(logits)
            losses = largest + sums.log() - (1 - smoothing) * wanted - smoothing * mean
            if shares is not None and d_shares is not None:
                scores = shares[part] - losses
                parts = scores.view(-1, copies).log_softmax(-1).view(-1, 1)  # ln of each one's part in the token's loss
                losses, count = parts - scores, count * parts.exp()
                d_shares[part] = -count
            total += (losses * count).sum()
            if to_learn:
                pulls[part] = ((wanted - largest).exp() / sums - (1 - smoothing)) * count
                logits[places[: len(some)], wants[:, 0]] = 0  # `scatter_` would copy bf16 logits to fp32
                torch.mm(logits, low, out=d_hidden[part])
                share = count / sums
                d_hidden[part] *= share
                if d_weight is not None:
                    _add_product(d_weight, logits.T, (some * share).to(dtype))
        if to_learn:
            d_hidden += pulls * low[ids[:, 0]]
        if d_weight is not None:
            ends = (pulls * hidden).to(weight.dtype)
            d_weight += torch.ops.aten.embedding_dense_backward(ends, ids[:, 0], len(weight), -1, False)
        if to_learn and smoothing:
            _smooth(d_hidden, d_weight, hidden, low[:vocab_size], counted * (smoothing / vocab_size))
        ctx.save_for_backward(d_hidden, d_weight, d_shares)
        return total

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The gradients of hidden, weight and shares."""
        d_hidden, d_weight, d_shares = (None if own is None else own.mul_(scale) for own in ctx.saved_tensors)
        return (d_hidden, d_weight, None, d_shares) + 6 * (None,)


def _smooth(d_hidden: Tensor, d_weight: Tensor | None, hidden: Tensor, low: Tensor, even: Tensor) -> None:
    """Subtract the gradients of the mean logits, times `even` [N, 1], from those of hidden and weight."""
    d_hidden -= even * low.float().sum(0)
    if d_weight is not None:
        d_weight[: len(low)] -= (even * hidden).sum(0)


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += left @ right, in place if the dtypes are the same."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


Terms = Callable[[Tensor], tuple[Tensor, Tensor]]
