"""Cut the learning rate when the validation loss no longer falls."""

from minigpt.config import ScheduleConfig
from minigpt.training.loop import Hook, Trainer


class Plateau(Hook):
    """Multiplies the rate by `plateau_factor` at each stall, and lets the run continue past its budget.

    A stall is `plateau_patience` evaluations in a row without a better validation loss.

    Args:
        config: settings of the schedule cosine+plateau.
    """

    def __init__(self, config: ScheduleConfig):
        self.config = config

    def on_evaluation(self, trainer: Trainer) -> None:
        """Count the evaluations without progress; cut the rate at a stall."""
        state = trainer.state
        state.evals_since_cut = 0 if state.evals_since_best == 0 else state.evals_since_cut + 1
        if state.evals_since_cut >= self.config.plateau_patience:
            state.cuts, state.evals_since_cut = state.cuts + 1, 0

    def rate_factor(self, trainer: Trainer) -> float:
        """The product of all cuts so far."""
        return self.config.plateau_factor**trainer.state.cuts

    def extends(self, trainer: Trainer) -> bool:
        """Whether the run continues: up to `plateau_max_steps` after its budget of steps, but not after its minutes.

        At a floor of 0 nothing more would be learned.
        """
        total = trainer.budget.total_steps
        if total is None or not self.config.min_lr_ratio or trainer.budget.progress(0, trainer.state.seconds) >= 1:
            return False
        return trainer.state.step < total + self.config.plateau_max_steps
