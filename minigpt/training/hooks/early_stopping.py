"""End a run when its validation loss no longer falls."""

from minigpt.training.loop import Hook, Trainer


class EarlyStopping(Hook):
    """Ends the run after `patience` evaluations in a row without a better validation loss."""

    def __init__(self, patience: int):
        self.patience = patience

    def on_evaluation(self, trainer: Trainer) -> None:
        """Ask the trainer to stop when the patience is used up."""
        if trainer.state.evals_since_best >= self.patience:
            trainer.stop(f"no better validation loss in {trainer.state.evals_since_best} evaluations")
