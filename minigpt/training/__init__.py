"""Train models: one step, schedules, optimizers, the loop and its hooks."""

from minigpt.training.loop import Hook, Trainer
from minigpt.training.optim import make_optimizer
from minigpt.training.schedule import Budget, lr_factor
from minigpt.training.step import accumulate, update, validation_loss

__all__ = [
    "Budget", "Hook", "Trainer", "accumulate", "lr_factor", "make_optimizer", "update", "validation_loss"
]  # fmt: skip
