"""Run the training loop. Its parts are passed in, and everything optional is a hook.

Step k is a pure function of (weights, optimizer state, seed, k): batches and dropout need no generator state.
So a run that resumes from a checkpoint repeats the steps after it bit for bit.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.amp.grad_scaler import GradScaler

from minigpt.config import ScheduleConfig, TrainConfig
from minigpt.errors import DivergedError
from minigpt.model import GPT
from minigpt.model.learner import Learner
from minigpt.runtime.device import Runtime, out_of_memory
from minigpt.runtime.memory import keep_freed_pages
from minigpt.runtime.precision import Optimizer
from minigpt.training.objective import WHOLE, Saved
from minigpt.training.optim import load_optimizer, optimizer_tensors
from minigpt.training.schedule import Budget, context_parts, decay_factor, lr_factor, whole_epochs
from minigpt.training.step import Batch, accumulate, update, validation_loss
from minigpt.weights.checkpoint import Checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState


class BatchSource(Protocol):
    """What the trainer needs from its data: batch k, as a pure function of k."""

    steps_per_epoch: float
    tokens_per_step: int

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """(inputs, targets) [B, T] of step k."""
        ...


class Hook:
    """Optional behaviour; override what you need."""

    def on_start(self, trainer: "Trainer") -> None:
        """Called before the first step."""

    def on_first_loss(self, trainer: "Trainer", loss: float) -> None:
        """Called before a new run's first step, with the validation loss. Step 0 is never the best: it is not saved."""

    def on_update(self, trainer: "Trainer") -> None:
        """Called after the optimizer has changed the weights, before an evaluation."""

    def on_validation_batch(self, trainer: "Trainer", number: int) -> None:
        """Called before each batch of an evaluation; the first has number 1."""

    def on_evaluation(self, trainer: "Trainer") -> None:
        """Called after an evaluation, when `trainer.state` has its loss and the best so far."""

    def on_step(self, trainer: "Trainer") -> None:
        """Called after every step and its evaluation, if there is one; `trainer.loss` and `.lr` are of that step."""

    def rate_factor(self, trainer: "Trainer") -> float:
        """A factor for the scheduled learning rate."""
        return 1.0

    def extends(self, trainer: "Trainer") -> bool:
        """Whether the run continues although its budget is used up."""
        return False

    def weights_to_use(self, trainer: "Trainer") -> AbstractContextManager[None]:
        """Put other weights into the model, such as an average, during evaluations and samples."""
        return nullcontext()

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The hook's tensors in a checkpoint, by part and name."""
        return {}

    def on_resume(self, trainer: "Trainer", checkpoint: Checkpoint) -> None:
        """Called on resume: read from the checkpoint what `tensors` put into it."""

    def recover(self, trainer: "Trainer", error: DivergedError) -> bool:
        """Called after divergence: fix the run and return True, or return False. Raise DivergedError to end the run."""
        return False

    def on_rollback(self, trainer: "Trainer") -> None:
        """Called after the run rolled back to an earlier step."""

    def on_end(self, trainer: "Trainer") -> None:
        """Called after the last step, also if the run was stopped early."""

    def close(self) -> None:
        """Called at the very end, also after an error: release what the hook holds."""


def batch_number(step: int, skipped: Sequence[int]) -> int:
    """The batch of a step when some batches are skipped: batch_number(3, [1, 4]) -> 5, the fourth of 0, 2, 3, 5."""
    for batch in skipped:
        step += batch <= step
    return step


class Trainer:
    """Trains a model.

    Args:
        model: the model, on the runtime's device.
        optimizer: updates the model's parameters; each group's rate and decay are set before every step.
        batches: training data.
        validation: gives an iterable of validation batches.
        config, schedule: budget, accumulation, clipping, evaluation; and the rate over time.
        runtime: device and precision.
        learning_rate: the peak rate; each group of the optimizer multiplies it by its `lr_scale`.
        hooks: called in order.
        learner: used in a training step (default: the model): a compiled view, or the model with another loss.
        evaluated: used in an evaluation (default: the model).
        saved: the part of the model that a checkpoint keeps.
    """

    def __init__(
        self,
        model: GPT,
        optimizer: Optimizer,
        batches: BatchSource,
        validation: Callable[[], Iterable[Batch]],
        config: TrainConfig,
        schedule: ScheduleConfig,
        runtime: Runtime,
        learning_rate: float,
        hooks: Sequence[Hook] = (),
        learner: Learner | None = None,
        evaluated: Learner | None = None,
        saved: Saved = WHOLE,
    ):
        self.model, self.optimizer, self.batches, self.validation = model, optimizer, batches, validation
        self.config, self.schedule, self.runtime = config, schedule, runtime
        self.learning_rate, self.hooks = learning_rate, list(hooks)
        self.decays: list[float] = [group["weight_decay"] for group in optimizer.param_groups]
        self.learner: Learner = model if learner is None else learner  # not `or`: a compiled module has no truth value
        self.evaluated: Learner = model if evaluated is None else evaluated
        self.saved = saved
        self.state = TrainState(decay_after_warmup=True)
        self.scaler = GradScaler(runtime.device.type) if runtime.precision == "fp16" else None
        self.budget = Budget(config, batches.steps_per_epoch, batches.tokens_per_step)
        self.loss = self.grad_norm = torch.zeros(())
        self.lr = 0.0
        self.eval_seconds = 0.0
        self._asked = self._stop = ""

    def stop(self, reason: str) -> None:
        """Ask the loop to end after this step."""
        self._asked = reason

    def run(self) -> TrainState:
        """Train until the budget, a hook or a signal ends it; returns the final state."""
        if self.runtime.device.type == "cpu":
            keep_freed_pages()
        try:
            with self.runtime.own_draws():  # dropout is seeded at each step
                return self._run()
        finally:
            for hook in self.hooks:
                hook.close()

    def _run(self) -> TrainState:
        for hook in self.hooks:
            hook.on_start(self)
        self.model.train()
        self._started = time.perf_counter() - self.state.seconds
        if not self.state.step:
            loss = self._validate()
            for hook in self.hooks:
                hook.on_first_loss(self, loss)
        while not self._ended():
            try:
                before = self.progress
                self._one_step()
                # before the evaluation, so that the last step is evaluated; the ranks' clocks differ: the latest counts
                self.state.seconds = self.runtime.ranks.largest(time.perf_counter() - self._started)
                if self._evaluation_due(before):
                    self.evaluate()
                for hook in self.hooks:
                    hook.on_step(self)
            except DivergedError as error:
                if not any(hook.recover(self, error) for hook in self.hooks):
                    raise
        self.state.stop_reason = self._stop or "budget used up"
        self.state.finished = not self._stop.startswith("interrupted")
        for hook in self.hooks:
            hook.on_end(self)
        return self.state

    def _ended(self) -> bool:
        """Whether to stop. The ranks' signals differ, so all take any rank's stop; an interruption comes first."""
        asked = self._asked  # read once: a signal may come while the ranks ask each other
        own = bool(asked) + asked.startswith("interrupted")
        if most := int(self.runtime.ranks.largest(float(own))):
            self._stop = asked if own == most else ("asked by another rank", "interrupted on another rank")[most - 1]
        return bool(self._stop) or self.done

    def _one_step(self) -> None:
        state, ranks = self.state, self.runtime.ranks
        factor = math.prod(hook.rate_factor(self) for hook in self.hooks)
        share = lr_factor(state.step, self.progress, self.schedule, state.decay_after_warmup)
        self.lr = self.learning_rate * factor * share
        for group, decay in zip(self.optimizer.param_groups, self.decays, strict=True):
            group["lr"] = self.lr * group.get("lr_scale", 1.0)
            group["weight_decay"] = decay * decay_factor(share, self.schedule)
        batch = self.batches.batch(batch_number(state.step, state.skipped), ranks.rank, ranks.world)
        self.loss = self._within_memory(lambda size: self._gradients(batch, size))
        self.grad_norm = update(
            self.learner, self.optimizer, runtime=self.runtime, grad_clip=self.config.grad_clip, scaler=self.scaler
        )
        state.step += 1
        state.tokens += self.batches.tokens_per_step
        for hook in self.hooks:
            hook.on_update(self)

    def _gradients(self, batch: Batch, size: int) -> Tensor:
        parts = context_parts(self.progress, self.schedule)
        micro = [(side.reshape(len(side) * parts, -1) if parts > 1 else side).split(size * parts) for side in batch]
        return accumulate(
            self.learner,
            list(zip(*micro, strict=True)),
            runtime=self.runtime,
            step=self.state.step,
            seed=self.config.seed,
            label_smoothing=self.config.label_smoothing,
            scaler=self.scaler,
        )

    def _within_memory(self, work: Callable[[int], Any]) -> Any:
        """work(micro-batch size); if memory runs out, halve the size from now on and try again."""
        while True:
            size = min(self.state.micro_batch_size or self.config.rows, self.config.rows)
            try:
                return work(size)
            except (RuntimeError, MemoryError) as error:
                if size == 1 or self.runtime.ranks.world > 1 or not out_of_memory(error):
                    raise
            self.runtime.empty_cache()  # not in `except`: there the error still keeps memory in use
            self.state.micro_batch_size = size // 2
            self.model.train()

    @property
    def progress(self) -> float:
        """Share of the budget used up."""
        return self.budget.progress(self.state.step, self.state.seconds)

    @property
    def epoch(self) -> float:
        """Passes over the training tokens so far."""
        return self.state.step / self.batches.steps_per_epoch

    @property
    def done(self) -> bool:
        """Whether the budget is used up, and no hook extends the run."""
        return self.progress >= 1 and not any(hook.extends(self) for hook in self.hooks)

    def _evaluation_due(self, before: float) -> bool:
        """Whether to evaluate after this step; `before` is the progress before the step."""
        step, per_epoch, every = self.state.step, self.batches.steps_per_epoch, self.config.eval_every
        read, read_before = whole_epochs(step, per_epoch), whole_epochs(step - 1, per_epoch)
        epoch_ends = self.config.max_epochs is not None and read > read_before
        tenth = int(10 * self.progress) > int(10 * before)
        return (tenth if every == "auto" else step % every == 0) or epoch_ends or self.done

    def _validate(self) -> float:
        """Validation loss in nats per token."""
        started = time.perf_counter()
        with self.weights_to_use():
            loss = self._within_memory(
                lambda _: validation_loss(self.model, self._watched(self.validation()), self.runtime, self.evaluated)
            )
        self.eval_seconds += time.perf_counter() - started
        if loss != loss:
            raise DivergedError(f"the validation loss is NaN at step {self.state.step}")
        return loss

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for number, batch in enumerate(batches, 1):
            for hook in self.hooks:
                hook.on_validation_batch(self, number)
            yield batch

    def evaluate(self) -> float:
        """Validation loss in nats per token; updates the best loss so far."""
        state, loss = self.state, self._validate()
        state.val_loss = loss
        if state.best_loss is None or loss < state.best_loss:
            state.best_loss, state.best_step, state.evals_since_best = loss, state.step, 0
        else:
            state.evals_since_best += 1
        for hook in self.hooks:
            hook.on_evaluation(self)
        state.eval_step = state.step
        return loss

    @contextmanager
    def weights_to_use(self) -> Iterator[None]:
        """Inside the block, the model holds the weights to evaluate: their average, if a hook keeps one."""
        with ExitStack() as held:
            for hook in self.hooks:
                held.enter_context(hook.weights_to_use(self))
            yield

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All tensors that a checkpoint holds."""
        out = {
            self.saved.part: self.saved.tensors(self.model),
            "optimizer": optimizer_tensors(self.model, self.optimizer),
        }
        for hook in self.hooks:
            out |= hook.tensors()
        return out

    def checkpoint_state(self) -> CheckpointState:
        """Everything else that a checkpoint holds of the training."""
        if self.scaler:
            self.state.scaler = self.scaler.state_dict()
        return CheckpointState(model=self.model.config.model_dump(mode="json"), train=copy.deepcopy(self.state))

    def resume(self, checkpoint: Checkpoint) -> None:
        """Continue exactly from a checkpoint; its tensors are copied, then dropped.

        They are mapped from its files, and Windows cannot delete a mapped file when the checkpoint becomes old.
        """
        own, parts, saved = self.runtime.ranks.own, dict(self.model.named_parameters()), self.saved
        weights = {n: own(tensor, parts.get(n, tensor)) for n, tensor in checkpoint.tensors[saved.part].items()}
        self.model.load_weights(weights if saved is WHOLE else self.model.weights() | weights)
        load_optimizer(self.model, self.optimizer, checkpoint.tensors.get("optimizer", {}), own)  # {}: step 0 in parts
        for hook in self.hooks:
            hook.on_resume(self, checkpoint)
        checkpoint.tensors.clear()
        self.state = copy.deepcopy(checkpoint.train)
        if self.state.finished:  # a run that stopped early, and is continued, has its patience again
            self.state.evals_since_best = 0
        self.state.finished, self.state.stop_reason = False, ""
        if self.scaler:
            self.scaler = GradScaler(self.runtime.device.type)  # the first scale, unless the checkpoint has one
            if self.state.scaler:
                self.scaler.load_state_dict(self.state.scaler)
