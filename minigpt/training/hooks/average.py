"""The hook that keeps a running average of the weights (Polyak and Juditsky, 1992) to evaluate, sample and save."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minigpt.training.loop import Hook, Trainer
from minigpt.weights.checkpoint import Checkpoint


class Average(Hook):
    """average <- decay x average + (1 - decay) x weights, after every step.

    Early on the decay is (1 + step) / (10 + step), so that the random start is soon forgotten.

    Args:
        model: whose weights are averaged, on its device.
        decay: 0 to 1; 0.999 is usual.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def on_update(self, trainer: Trainer) -> None:
        """Take in the new weights."""
        step = trainer.state.step
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, parameter in trainer.model.named_parameters():
            self.weights[name].lerp_(parameter, 1 - decay)

    @contextmanager
    def weights_to_use(self, trainer: Trainer) -> Iterator[None]:
        """The model holds the average inside the block, its own weights after it, whatever happens."""
        model = trainer.model
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(self.weights, strict=False)  # a copy: what a rank has a part of cannot point elsewhere
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The part "ema" of a checkpoint."""
        return {"ema": self.weights}

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Put the average back; a checkpoint without one begins with its weights."""
        own, parameters = trainer.runtime.ranks.own, dict(trainer.model.named_parameters())
        for name, tensor in checkpoint.tensors.get("ema", checkpoint.tensors["model"]).items():
            self.weights[name].copy_(own(tensor, parameters[name]))
