"""Settings for training that goes wrong (NaN, infinite or sudden high losses); docs/recovery.md has the rules."""

from typing import Annotated

from pydantic import Field

from minigpt.config.section import NonNegativeFloat, NonNegativeInt, Positive, Section


class RecoveryConfig(Section):
    """What the run does when training goes wrong."""

    patience: Positive = 5
    """Bad steps in a row before the run rolls back. In a bad step the loss or gradient is NaN or infinite, or the
    loss is a spike."""
    max_rollbacks: NonNegativeInt = 3
    """How often a run may roll back to its last good checkpoint; it then skips the bad batches and halves the rate. The
    next failure ends the run (0: no rollbacks)."""
    spike_deviations: NonNegativeFloat = 6.0
    """A loss is a spike if it is above the median of recent losses by this many times their noise (0: off)."""
    spike_window: Annotated[int, Field(ge=8)] = 100
    """How many of the last good losses count as recent."""
