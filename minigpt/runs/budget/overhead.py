"""Estimate what a run costs besides its steps: evaluations, checkpoints, samples, the plot; and how often each is
done.
"""

import math
from dataclasses import dataclass
from typing import Any, Self

from minigpt.config import RunConfig
from minigpt.runs.budget.rule import Size
from minigpt.runs.score import LEAST

EVALUATIONS, EVAL_SHARE = 11, 0.03
"""Evaluations of a run, including that of step 0; the largest share of the time that they take together."""
SAVES, SAVE_SECONDS, SAVE_BYTES = 20, 30.0, 1e8
"""Most checkpoints of a run; fewest seconds between them; bytes of a checkpoint written per second."""
SHOW_FROM = 60.0
"""A run of at least this many seconds evaluates before its end, writes samples and draws its loss."""
PLOT, LEAVE, COMPILE, FLOORS = 3.0, 0.7, 8.0, 2.0
"""Approximate seconds for: drawing; starting and leaving Python; compiling again what was compiled for timing; the
floors of a text that is scored for the first time."""


@dataclass(frozen=True)
class Overhead:
    """The work in addition to the steps.

    Attributes:
        eval_batches: batches of one evaluation; None: the whole split.
        long: the run is long enough for everything that `SHOW_FROM` names.
        between, after: seconds of this work during the training (its clock counts them), and after it.
    """

    eval_batches: int | None
    long: bool
    between: float
    after: float

    @classmethod
    def of(cls, config: RunConfig, size: Size, val_tokens: int, step: float, total: float, compiled: bool) -> Self:
        """Estimate the overhead of a run of `total` seconds with steps of `step` seconds.

        A batch of an evaluation is assumed to take a third of a step without masked inputs.
        """
        long = total >= SHOW_FROM
        evaluations = EVALUATIONS if long else 2
        batch, micro = config.train.batch_size, config.train.micro_batch_size
        rows = min(batch, micro) if isinstance(micro, int) else batch
        one = step / config.train.passes / 3 * rows / batch
        whole = -(-val_tokens // (rows * config.model.max_seq_len))
        allowed = config.train.eval_batches or max(1, int(EVAL_SHARE * total / evaluations / one))
        evaluation = min(whole, allowed) * one
        saving = 0.1 + 12 * size.products / SAVE_BYTES  # weights and AdamW's two moments
        between = (evaluations - 1) * evaluation + saving * min(SAVES, total / SAVE_SECONDS)
        trained = total / step * batch * config.model.max_seq_len
        scored = val_tokens * LEAST <= trained  # the best weights, at the end, on the whole split
        score = whole * one + FLOORS if scored else 0.0
        after = evaluation + score + saving + LEAVE + (PLOT if long and config.logging.plots else 0.0)
        batches = None if whole <= allowed else allowed
        return cls(batches, long, between + (COMPILE if compiled else 0.0), after)

    def settings(self, steps: int, step: float) -> dict[str, Any]:
        """Settings by dotted name, for a run of this many steps of `step` seconds."""
        return {
            "train.eval_batches": self.eval_batches,
            # the start and the end are always evaluated
            "train.eval_every": math.ceil(steps / (EVALUATIONS - 1)) if self.long else 2 * steps,
            "train.sample_every": math.ceil(0.4 * steps) if self.long else 0,
            "train.save_every": math.ceil(max(SAVE_SECONDS / step, steps / SAVES)),
            "logging.plots": self.long,
        }
