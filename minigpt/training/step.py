"""Do one optimizer step, and one pass over validation batches."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler

from minigpt.model import GPT
from minigpt.model.kernels.chunked_loss import chunk_logits
from minigpt.model.learner import Learner
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import Runtime, evaluating, step_seed
from minigpt.runtime.precision import Optimizer

Batch = tuple[Tensor, Tensor]


def accumulate(
    learner: Learner,
    micro_batches: Sequence[Batch],
    *,
    runtime: Runtime,
    step: int = 0,
    seed: int = 0,
    label_smoothing: float = 0.0,
    scaler: GradScaler | None = None,
) -> Tensor:
    """Compute the gradients of a batch (older ones are dropped); returns its mean loss over the valid targets.

    Args:
        micro_batches: (inputs, targets) pairs, each [b, T]; together they are one batch.
        step, seed: dropout of micro-batch i is a pure function of (seed, step, i).

    With several ranks, each has its own micro-batches, and the mean is over the valid targets of all ranks. The ranks'
    gradients are averaged, so each rank divides by the mean number of valid targets per rank.
    """
    ranks = runtime.ranks
    valid: int | Tensor = sum(int((targets != IGNORE).sum()) for _, targets in micro_batches)
    if ranks.world > 1:
        valid = ranks.total(torch.tensor(valid)) / ranks.world
    for parameter in learner.parameters():
        parameter.grad = None
    loss = torch.zeros((), device=runtime.device)
    # mps may read a batch after its memory is given to another tensor (pytorch/pytorch#189690), so it has to wait
    queued = runtime.device.type == "cuda"
    for index, (inputs, targets) in enumerate(micro_batches):
        runtime.seed(step_seed(seed, step, ranks.rank, index))
        inputs, targets = (side.to(runtime.device, non_blocking=queued) for side in (inputs, targets))
        with ranks.sync_gradients(learner, now=index == len(micro_batches) - 1):
            with runtime.autocast():
                part = learner.loss(inputs, targets, valid=valid or 1, label_smoothing=label_smoothing)
            (scaler.scale(part) if scaler else part).backward()
        loss += part.detach()
    return ranks.total(loss) / ranks.world


def update(
    learner: Learner,
    optimizer: Optimizer,
    *,
    runtime: Runtime,
    grad_clip: float = 1.0,
    scaler: GradScaler | None = None,
) -> Tensor:
    """Clip the gradients' norm to `grad_clip` (0: no clipping), then step, unless the norm is NaN or infinite.

    Returns the norm before clipping.
    """
    if scaler:
        scaler.unscale_(cast(Any, optimizer))  # it reads param_groups only
    norm = runtime.ranks.whole(torch.nn.utils.clip_grad_norm_(learner.parameters(), grad_clip or float("inf")))
    if scaler:
        scaler.step(cast(Any, optimizer))
        scaler.update()
    elif norm.isfinite():
        optimizer.step()
    return norm


@torch.no_grad()
def validation_loss(model: GPT, batches: Iterable[Batch], runtime: Runtime, learner: Learner | None = None) -> float:
    """Mean nats per valid target over the batches, summed in float64. Ranks take batches in turn.

    `learner` computes the loss (default: the model).
    """
    learner = model if learner is None else learner
    nats, count, ranks = 0.0, 0, runtime.ranks
    rest = iter(batches)
    with evaluating(model):
        while turn := list(islice(rest, ranks.world)):
            inputs, targets = turn[min(ranks.rank, len(turn) - 1)]  # a rank without a batch repeats one
            with runtime.autocast():
                loss = learner.loss(inputs.to(runtime.device), targets.to(runtime.device), valid=1).item()
            if ranks.rank < len(turn):
                nats, count = nats + loss, count + int((targets != IGNORE).sum())
    nats, count = ranks.total(torch.tensor([nats, count], dtype=torch.float64)).tolist()
    return nats / max(count, 1)


@torch.no_grad()
def target_losses(
    model: nn.Module, batches: Iterable[Batch], runtime: Runtime, temperature: float = 1.0
) -> Iterator[tuple[Tensor, Tensor]]:
    """The loss of each target: (targets, nats) per batch, both [B, T] on the CPU. The model's mode is kept.

    Args:
        model: ids [B, T] -> logits [B, T, V], on the runtime's device.
        temperature: above 0; the logits are divided by it.

    Nats are computed in fp32 and returned in float64 (mps has none); 0 where the target is -100.
    """
    with evaluating(model):
        for inputs, targets in batches:
            nats: list[Tensor] = []
            with runtime.autocast():
                for logits, wanted in logits_in_pieces(model, inputs.to(runtime.device), targets.to(runtime.device)):
                    logits = logits.flatten(0, 1).float()  # [B, n, V] -> [B n, V]
                    losses = F.cross_entropy(
                        logits if temperature == 1 else logits / temperature,
                        wanted.flatten(),
                        ignore_index=IGNORE,
                        reduction="none",
                    )
                    nats.append(losses.cpu().double().view(wanted.shape))
            yield targets, torch.cat(nats, 1)


def logits_in_pieces(model: nn.Module, tokens: Tensor, targets: Tensor) -> Iterator[Batch]:
    """Logits [B, n, V] of tokens [B, T] and their part [B, n] of targets [B, T], piece by piece.

    All logits of 40,960 tokens and 151,936 ids, as in Qwen3, take 25 GB. On a CPU small pieces are also faster, since
    they stay in its cache.
    """
    if not isinstance(model, GPT):
        yield model(tokens), targets
        return
    hidden, size = model.hidden(tokens), model.config.vocab_size or 1  # [B, T, C]
    length = max(1, chunk_logits(hidden.device) // (len(tokens) * size * model.config.softmaxes))
    for part, wanted in zip(hidden.split(length, 1), targets.split(length, 1), strict=True):
        yield model.head(part)[..., :size], wanted
