"""Keep an average of the weights (Polyak and Juditsky, 1992) to evaluate, sample and save."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from minigpt.training.loop import Hook, Trainer
from minigpt.weights.checkpoint import Checkpoint


class Average(Hook):
    """average <- decay x average + (1 - decay) x weights, after every step.

    Early in the run the decay is (1 + step) / (10 + step), so that the random initial weights are soon forgotten.

    Args:
        model: whose weights are averaged, on its device.
        decay: 0 to 1; 0.999 is usual.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self.weights: dict[str, Tensor] = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def on_update(self, trainer: Trainer) -> None:
        """Add the new weights to the average."""
        share = self.share_of_new(trainer)
        for name, parameter in trainer.model.named_parameters():
            self.weights[name].lerp_(parameter, share)

    def share_of_new(self, trainer: Trainer) -> float:
        """The weight of the new weights in the average, 0 to 1."""
        step = trainer.state.step
        return 1 - min(self.decay, (1 + step) / (10 + step))

    @contextmanager
    def weights_to_use(self, trainer: Trainer) -> Iterator[None]:
        """Put the average into the model inside the block, and its own weights back at the end, also after an error."""
        model = trainer.model
        own = {name: p.detach().clone() for name, p in model.named_parameters()}
        model.load_state_dict(self.weights, strict=False)  # copies: a sharded parameter cannot share memory
        try:
            yield
        finally:
            model.load_state_dict(own, strict=False)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The average, as the checkpoint's part "ema"."""
        return {"ema": self.weights}

    def on_resume(self, trainer: Trainer, checkpoint: Checkpoint) -> None:
        """Read the average; without one in the checkpoint, begin with the checkpoint's weights."""
        own, parameters = trainer.runtime.ranks.own, dict(trainer.model.named_parameters())
        for name, tensor in checkpoint.tensors.get("ema", checkpoint.tensors["model"]).items():
            self.weights[name].copy_(own(tensor, parameters[name]))


class TailAverage(Average):
    """The mean of the weights after each step of the last part of a run (Izmailov et al., 2018).

    Before that part it equals the weights.

    Args:
        model: whose weights are averaged, on its device.
        last: length of the last part, as a share of the run.
    """

    def __init__(self, model: nn.Module, last: float):
        super().__init__(model, decay=0.0)
        self.last = last

    def share_of_new(self, trainer: Trainer) -> float:
        """1 until the first step of the last part, then 1/2, 1/3, ..."""
        state = trainer.state
        state.averaged = state.averaged + 1 if trainer.progress > 1 - self.last else 0
        return 1 / max(1, state.averaged)
