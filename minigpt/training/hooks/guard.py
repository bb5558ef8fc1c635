"""Skip bad steps; after divergence roll back to a good checkpoint and retry at half the learning rate.

A step is bad if its loss or gradient is NaN or infinite (`update` does not change the weights then), or if its loss is
a spike: higher than `spike_limit`. The run diverges if there are `patience` bad steps in a row, or if the validation
loss or a weight is NaN or infinite. Then it rolls back to the last good checkpoint, or to its first weights. It skips
the bad batches and the batch just before them, and halves the learning rate. PaLM's training did the same: "we
re-started training from a checkpoint roughly 100 steps before the spike started, and skipped roughly 200-500 data
batches" (Chowdhery et al., 2022, 5.1). All ranks see the same losses, so they decide the same. The guard's state is
saved in each checkpoint, so a resumed run decides as an uninterrupted run.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

from minigpt.config.recovery import RecoveryConfig
from minigpt.console import counted
from minigpt.errors import DamagedError, DivergedError, StorageError
from minigpt.files import append_line, read_lines, write_lines
from minigpt.layout import BEST, LAST, step_of, whole_steps
from minigpt.model import GPT
from minigpt.training.hooks.checkpoints import Checkpoints, pointed
from minigpt.training.loop import Hook, Trainer, batch_number
from minigpt.weights import checkpoint
from minigpt.weights.aside import set_aside
from minigpt.weights.checkpoint import Checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, RecoveryState, TrainState
from minigpt.weights.damage import PARTS


def spike_limit(losses: Sequence[float], chance: float, start: float, deviations: float, window: int) -> float:
    """The loss above which a step is bad: max(chance, start) + 1 nat at first, and less later.

    When a quarter of the window is filled, it is the median of the recent losses plus the largest of three numbers:
    `deviations` x the noise, a fifth of the median, and half a nat (a model that overfits a small text has a loss of
    0.06, and sometimes of 0.3 for a while). The noise is 1.4826 / sqrt(2) x the median change from step to step. This
    estimates the standard deviation of a normal distribution; a few outliers or a falling loss do not make it larger.

    spike_limit([2.0, 2.1] * 15, chance=4.0, start=4.1, deviations=6, window=100) -> 2.05 + 6 x 0.105 = 2.68
    """
    limit = max(chance, start) + 1
    if len(losses) < window / 4:
        return limit
    middle = median(losses)
    noise = 1.4826 / math.sqrt(2) * median(abs(later - sooner) for sooner, later in pairwise(losses))
    return min(limit, middle + max(deviations * noise, 0.2 * middle, 0.5))


class Guard(Hook):
    """Judges every step; the trainer calls `recover` after divergence.

    Args:
        config: patience, number of rollbacks, and limits for spikes.
        saver: its checkpoints are used for rollbacks; the guard's memory is saved in them.
        path: incidents.jsonl, one line per incident: step, what, batches, action (skipped, rolled back, stopped),
            rate_scale, checkpoint (the one that the run rolled back to; null if none).
        first: makes the model as it was before the first step.
        say: shows a line to the user.
        before: the guard's memory in the checkpoint that the run resumes from.
    """

    def __init__(
        self,
        config: RecoveryConfig,
        saver: Checkpoints,
        path: Path,
        first: Callable[[], GPT],
        say: Callable[[str], object],
        before: RecoveryState | None,
    ):
        self.config, self.saver, self.path, self.first, self.say = config, saver, path, first, say
        self.memory = before or RecoveryState()
        saver.recovery = self.memory  # not a copy, so that each checkpoint has its latest state

    def on_start(self, trainer: Trainer) -> None:
        """Drop the incidents after the checkpoint; the resumed run meets them again."""
        if self.path.exists() and trainer.runtime.ranks.rank == 0:
            write_lines(self.path, read_lines(self.path)[: self.memory.incidents])

    def on_step(self, trainer: Trainer) -> None:
        """Judge the step. Raises DivergedError if the run has diverged."""
        state, memory, config = trainer.state, self.memory, self.config
        if state.eval_step == state.step and not math.isfinite(state.val_loss or 0.0):
            raise DivergedError(f"the validation loss is {state.val_loss} at step {state.step}")
        loss, norm = trainer.loss.item(), trainer.grad_norm.item()
        if math.isfinite(loss) and not math.isfinite(norm) and trainer.scaler and trainer.scaler.get_scale() >= 1:
            return  # fp16: the scale was too large, and the scaler has halved it
        finite = math.isfinite(loss) and math.isfinite(norm)
        if memory.start is None and finite:
            memory.start = loss
        if finite and loss <= self._limit(trainer):
            memory.losses = [*memory.losses, loss][-config.spike_window :]
            memory.streak = 0
            return
        memory.streak += 1
        batch = batch_number(state.step - 1, state.skipped)
        memory.bad.append((state.step, batch))
        what = f"loss {loss:.4g}, gradient norm {norm:.4g}"
        if memory.streak >= config.patience:
            raise DivergedError(f"{counted(memory.streak, 'bad step')} in a row ({what})")
        if not finite:
            self._note(trainer, what, [batch], "skipped", f"batch {batch} is skipped, the weights are unchanged")

    def _limit(self, trainer: Trainer) -> float:
        memory, config = self.memory, self.config
        if not config.spike_deviations:
            return math.inf
        chance = math.log(trainer.model.config.vocab_size or 1)
        return spike_limit(memory.losses, chance, memory.start or 0.0, config.spike_deviations, config.spike_window)

    def rate_factor(self, trainer: Trainer) -> float:
        """A factor of the rate, halved at each rollback."""
        return trainer.state.rate_scale

    def recover(self, trainer: Trainer, error: DivergedError) -> bool:
        """Roll back. After `max_rollbacks` rollbacks, raises DivergedError that says what to change."""
        memory, state = self.memory, trainer.state
        if memory.rollbacks >= self.config.max_rollbacks:
            batches = [batch for _, batch in memory.bad]
            outcome = f"rolled back {counted(memory.rollbacks, 'time')} before; the run ends"
            self._note(trainer, str(error), batches, "stopped", outcome)
            raise DivergedError(self._advice(trainer, error)) from error
        self.saver.finish(trainer)
        onset = state.step - memory.streak  # the last step before the bad ones
        saved = self._last_good(trainer, onset)
        back_to = saved.train.step
        batches = [batch for step, batch in memory.bad if step > back_to]
        if memory.streak and onset > back_to:
            batches.append(batch_number(onset - 1, state.skipped))  # its update may be the cause
        batches = sorted(set(batches))
        rate, name, past = (
            state.rate_scale / 2,
            saved.path.name if back_to else None,
            saved.state.recovery or RecoveryState(),
        )
        memory.losses, memory.bad = past.losses, past.bad
        memory.streak, memory.rollbacks = 0, memory.rollbacks + 1
        outcome = (
            f"back to {name or 'the first weights'} (steps lost: {state.step - back_to}); now at {rate:g} of the rate, "
            f"without batches {batches} (try {memory.rollbacks} of {self.config.max_rollbacks})"
        )
        self._note(trainer, str(error), batches, "rolled back", outcome, rate_scale=rate, checkpoint=name)
        trainer.resume(saved)
        trainer.state.skipped, trainer.state.rate_scale = sorted([*state.skipped, *batches]), rate
        self._forget_later(trainer, back_to)
        self.saver.save(trainer)  # if the run is killed after this, it resumes from the rollback
        for hook in trainer.hooks:
            hook.on_rollback(trainer)
        return True

    def _last_good(self, trainer: Trainer, onset: int) -> Checkpoint:
        """The newest whole checkpoint from before the bad steps, else the first weights.

        If all checkpoints are later and older ones were deleted, it is the oldest. Rank 0 chooses for all ranks.
        One that only an interruption saved does not count: an uninterrupted run would not have it.
        """
        ranks, saved = trainer.runtime.ranks, None
        if ranks.rank == 0:
            whole = whole_steps(self.saver.folder)
            regular = [path for path in whole if step_of(path) % self.saver.every == 0]
            older = regular[:1] if len(regular) >= self.saver.keep else []  # fewer than `keep`: none was deleted
            best = {path for path in whole if path.name == pointed(self.saver.folder, BEST) and step_of(path) <= onset}
            regular = [path for path in regular if step_of(path) <= onset] or older
            found = sorted(best.union(regular), key=step_of)
            while found and not saved:
                try:
                    saved = checkpoint.load(found[-1], PARTS)
                except DamagedError as error:
                    self.say(f"{error.what}; renamed to {set_aside(found.pop()).name}")
        step = int(ranks.largest(float(step_of(saved.path)) if saved else -1.0))
        if step >= 0:
            return saved or checkpoint.load(self.saver.directory(step), PARTS)
        weights, state = self.first().weights(), trainer.optimizer.state
        first = TrainState(decay_after_warmup=trainer.state.decay_after_warmup)
        masters = [name for name, p in trainer.model.named_parameters() if "master" in state.get(p, {})]
        tensors = {
            "model": weights,
            "adapter": weights,
            "optimizer": {f"master:{name}": weights[name] for name in masters},
        }
        return Checkpoint(self.saver.directory(0), tensors, CheckpointState(train=first))

    def _forget_later(self, trainer: Trainer, step: int) -> None:
        """Delete the checkpoints after `step`; the run repeats these steps."""
        ranks, folder = trainer.runtime.ranks, self.saver.folder
        ranks.largest(0.0)  # waits until every rank has read what it needs
        if ranks.rank == 0:
            if self.saver.directory(step).exists():
                checkpoint.point(folder, LAST, self.saver.directory(step))
            checkpoint.delete_later(folder, step)

    def _note(self, trainer: Trainer, what: str, batches: list[int], action: str, outcome: str, **more: object) -> None:
        """Write one line to the file, and show one to the user."""
        state = trainer.state
        if trainer.runtime.ranks.rank == 0:
            line = {"step": state.step, "what": what, "batches": batches, "action": action}
            try:
                append_line(self.path, {**line, "rate_scale": state.rate_scale, "checkpoint": None, **more})
                self.memory.incidents += 1
            except StorageError as error:  # shown, not raised: the next save will end the run
                self.say(str(error))
            self.say(f"step {state.step}: {what}; {outcome}")

    def _advice(self, trainer: Trainer, error: DivergedError) -> str:
        """The message after the last try: what to change."""
        lower = float(f"{trainer.learning_rate * trainer.state.rate_scale / 2:.2g}")
        last = self.saver.folder / LAST
        kept = f"{last.read_text(encoding='utf-8').strip()} is whole" if last.is_file() else "nothing was saved yet"
        precision = "" if trainer.runtime.precision == "fp32" else ", --train.precision fp32"
        return (
            f"training diverged: {error}; {kept}. Try another --name with --optimizer.learning-rate {lower:g} "
            f"or more --schedule.warmup-steps{precision}; look at the batches in {self.path}; "
            f"or continue: --resume --recovery.max-rollbacks {self.config.max_rollbacks + 3}, without --budget"
        )
