"""One optimizer step, and one pass over validation batches."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from minigpt.losses import IGNORE
from minigpt.model import GPT
from minigpt.runtime import Runtime, step_seed

Batch = tuple[Tensor, Tensor]


def train_step(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[Batch],
    *,
    runtime: Runtime,
    step: int = 0,
    seed: int = 0,
    grad_clip: float = 1.0,
    label_smoothing: float = 0.0,
    scaler: GradScaler | None = None,
) -> tuple[Tensor, Tensor]:
    """Accumulate the gradients of the micro-batches, clip their norm, and step.

    Args:
        micro_batches: (inputs, targets) pairs, each [b, T]; together they are one batch.
        step, seed: dropout of micro-batch i is a pure function of (seed, step, i).
        grad_clip: largest norm of the gradient, 0 for none.

    Returns:
        (loss, gradient norm before clipping), scalars on the device; the loss is the mean over valid targets.
    """
    valid = sum(int((targets != IGNORE).sum()) for _, targets in micro_batches) or 1
    optimizer.zero_grad(set_to_none=True)
    loss = torch.zeros((), device=runtime.device)
    for index, (inputs, targets) in enumerate(micro_batches):
        torch.manual_seed(step_seed(seed, step, micro=index))
        inputs, targets = (side.to(runtime.device, non_blocking=True) for side in (inputs, targets))
        with runtime.autocast():
            part = model.loss(inputs, targets, valid=valid, label_smoothing=label_smoothing)
        (scaler.scale(part) if scaler else part).backward()
        loss += part.detach()
    if scaler:
        scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or float("inf"))
    if scaler:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    return loss, norm


@torch.no_grad()
def validation_loss(model: GPT, batches: Iterable[Batch], runtime: Runtime) -> float:
    """Mean nats per valid target over the batches, summed on the host in float64; the model's mode is put back."""
    was_training = model.training
    model.eval()
    nats, count = 0.0, 0
    for inputs, targets in batches:
        with runtime.autocast():
            nats += model.loss(inputs.to(runtime.device), targets.to(runtime.device), valid=1).item()
        count += int((targets != IGNORE).sum())
    model.train(was_training)
    return nats / max(count, 1)
