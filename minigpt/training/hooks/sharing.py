"""Keep the rows of the output matrix equal that the tokens of `SharedRow.others` share."""

from minigpt.model.shared_row import SharedRow
from minigpt.training.loop import Hook, Trainer


class Sharing(Hook):
    """Makes the rows equal after each update, and after a rollback to the first weights.

    Args:
        shared: which ids share a row.
    """

    def __init__(self, shared: SharedRow):
        self.shared = shared

    def on_update(self, trainer: Trainer) -> None:
        """Make the rows equal."""
        self.shared.tie(trainer.model.head)

    on_rollback = on_update
