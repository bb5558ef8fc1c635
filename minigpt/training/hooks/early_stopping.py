"""End a run when its validation loss no longer falls."""

from minigpt.training.loop import Hook, Trainer


class EarlyStopping(Hook):
    """Ends the run after `patience` evaluations in a row without a better validation loss.

    It is the last hook, so a step that the guard rolls back ends nothing.
    """

    def __init__(self, patience: int):
        self.patience = patience

    def on_start(self, trainer: Trainer) -> None:
        """End at once if the run was killed after the evaluation that ends it."""
        self.on_step(trainer)

    def on_step(self, trainer: Trainer) -> None:
        """Ask the trainer to stop when the patience is used up."""
        if trainer.state.evals_since_best >= self.patience:
            trainer.stop(f"no better validation loss in {trainer.state.evals_since_best} evaluations")
