"""Settings of what is done when training goes wrong; docs/recovery.md has the rules."""

from typing import Annotated

from pydantic import Field

from minigpt.config.section import NonNegativeFloat, NonNegativeInt, Positive, Section


class RecoveryConfig(Section):
    """What is done when training goes wrong."""

    patience: Positive = 5
    """Bad steps in a row (their loss or gradient is not finite, or the loss is a spike) before the run goes back."""
    max_rollbacks: NonNegativeInt = 3
    """Times that a run goes back to its last good checkpoint, without the bad batches and at half the rate; what comes
    after ends it (0: it never goes back)."""
    spike_deviations: NonNegativeFloat = 6.0
    """A loss so many times the noise above the recent ones' median is a spike (0: none is)."""
    spike_window: Annotated[int, Field(ge=8)] = 100
    """Good losses that count as recent."""
