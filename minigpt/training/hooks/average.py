"""Hooks that keep an average of the weights (Polyak and Juditsky, 1992) to evaluate, sample and save."""

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
        share = self.share_of_new(trainer)
        for name, parameter in trainer.model.named_parameters():
            self.weights[name].lerp_(parameter, share)

    def share_of_new(self, trainer: Trainer) -> float:
        """What the new weights count for in the average."""
        step = trainer.state.step
        return 1 - min(self.decay, (1 + step) / (10 + step))

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


class TailAverage(Average):
    """The even mean of the weights after each step of the run's end (Izmailov et al., 2018); before it, the weights.

    Args:
        model: whose weights are averaged, on its device.
        last: share of the run, at its end, that counts.
    """

    def __init__(self, model: nn.Module, last: float):
        super().__init__(model, decay=0.0)
        self.last = last

    def share_of_new(self, trainer: Trainer) -> float:
        """1 before the end begins and in its first step, then 1/2, 1/3, ..."""
        state = trainer.state
        state.averaged = state.averaged + 1 if trainer.progress > 1 - self.last else 0
        return 1 / max(1, state.averaged)
