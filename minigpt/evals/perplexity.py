"""Compute a model's exact loss over a whole token sequence: every token but the first is predicted exactly once.

Windows of `context` tokens start every `stride` tokens. With stride = context the windows do not overlap; the first
tokens of a window are then predicted from little context. With a smaller stride, a window scores only its new tokens.
Every token then has at least context - stride tokens before it (except at the start), for context/stride times the
work. Logits are fp32, sums float64.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from minigpt.console import counted
from minigpt.data import eval_batches
from minigpt.errors import CheckpointError, DataError, UserError
from minigpt.model import GPT
from minigpt.model.ensemble import Ensemble
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import Runtime, evaluating
from minigpt.training.step import target_losses

_GPU_LOGITS = 2**30  # bytes of fp32 logits in one batch
_CPU_TOKENS = 2048  # tokens in one batch: fits the caches; batches of 256 windows of 256 took 1.5 times as long


@dataclass(frozen=True)
class Score:
    """The sums of each of W windows, in the order of the text."""

    nats: npt.NDArray[np.float64]  # [W] -ln p, summed over the tokens that the window scored
    tokens: npt.NDArray[np.int64]  # [W] number of these tokens
    bytes: npt.NDArray[np.int64]  # [W] bytes of text in these tokens; zero if `evaluate` got no token_lengths

    @property
    def loss(self) -> float:
        """Nats per token."""
        return float(self.nats.sum() / self.tokens.sum())


def evaluate(
    model: nn.Module,
    tokens: npt.NDArray[Any],
    *,
    context: int,
    runtime: Runtime,
    stride: int | None = None,
    batch_size: int | None = None,
    token_lengths: npt.NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
    temperature: float = 1.0,
) -> Score:
    """Score each of tokens[1:] exactly once.

    Args:
        model: ids [B, T] -> logits [B, T, V], on the runtime's device; its mode is restored afterwards.
        tokens: [N] ids, N at least 2.
        context: tokens in a window, at least 1.
        runtime: device and precision.
        stride: tokens between the starts of windows, 1 to context (default: context).
        batch_size: windows at a time (default: 2,048 tokens on a CPU, 1 GB of logits elsewhere); changes the result
            only by rounding.
        token_lengths: [V] bytes of each id, for `Score.bytes`.
        progress: called after each batch with (tokens scored so far, tokens to score).
        temperature: above 0; the logits are divided by it.

    Raises:
        UserError: context or stride out of range.
        DataError: too few tokens.
        CheckpointError: the loss is NaN or infinite.
    """
    stride = checked_stride(tokens, context, stride, batch_size)
    columns: list[list[npt.NDArray[Any]]] = [[], [], []]
    size = batch_size or rows_at_once(model, context, runtime.device.type)
    lengths = np.zeros(0, np.int64) if token_lengths is None else token_lengths
    done = 0
    for targets, nats in target_losses(model, eval_batches(tokens, context, stride, size), runtime, temperature):
        scored = (targets != IGNORE).numpy()  # [B, T]
        columns[0].append(nats.sum(1).numpy())
        columns[1].append(scored.sum(1))
        columns[2].append(text_bytes(targets.numpy(), scored, lengths))
        done += int(columns[1][-1].sum())
        if progress:
            progress(done, len(tokens) - 1)
    return check_finite(Score(*(np.concatenate(column) for column in columns)))


def check_finite(score: Score) -> Score:
    """Return the score. Raises CheckpointError if a loss is NaN or infinite."""
    if not np.isfinite(score.nats).all():
        raise non_finite_loss()
    return score


def non_finite_loss() -> CheckpointError:
    """The error for a model whose loss is NaN or infinite."""
    return CheckpointError(
        "the model's loss is NaN or infinite: its weights are damaged, or its training diverged; take another "
        "checkpoint of the run"
    )


def averaged(others: Sequence[GPT]) -> Callable[..., Score]:
    """A `scorer` for `evaluate_run`: evaluates the mean of the probabilities of the run's model and these models.

    The training mode of each model is restored afterwards.
    """

    def scorer(model: GPT, tokens: npt.NDArray[Any], **how: Any) -> Score:
        with ExitStack() as modes:
            for member in (model, *others):
                modes.enter_context(evaluating(member))
            return evaluate(Ensemble([model, *others]), tokens, **how)

    return scorer


def checked_stride(tokens: npt.NDArray[Any], context: int, stride: int | None, batch_size: int | None) -> int:
    """The stride, by default the context.

    Raises UserError for an impossible stride, context or batch size, DataError for too few tokens.
    """
    stride = context if stride is None else stride
    if context < 1 or not 1 <= stride <= context:
        raise UserError(f"stride {stride} does not fit context {context}; choose a stride of 1 to {context}")
    check_batch_size(batch_size)
    if len(tokens) < 2:
        raise DataError(
            f"{counted(len(tokens), 'token')} cannot be evaluated, since the first is not predicted; give more text"
        )
    return stride


def check_batch_size(size: int | None) -> None:
    """Raise UserError for an impossible number of windows at a time."""
    if size is not None and size < 1:
        raise UserError(f"batch size {size} is not positive; choose 1 or more")


def text_bytes(targets: npt.NDArray[Any], scored: npt.NDArray[np.bool_], lengths: npt.NDArray[np.int64]) -> Any:
    """Bytes [B] of the scored targets [B, T]."""
    if not len(lengths):
        return np.zeros(len(targets), np.int64)
    return np.where(scored, lengths[np.where(scored, targets, 0)], 0).sum(1)


def rows_at_once(model: nn.Module, context: int, device: str) -> int:
    """How many windows of `context` tokens are computed together."""
    config = getattr(model, "config", None)
    vocab_size, copies = getattr(config, "vocab_size", None) or 2**16, getattr(config, "softmaxes", 1)
    if device == "cpu":
        return max(1, _CPU_TOKENS // (context * copies))
    return max(1, min(256 // copies, _GPU_LOGITS // (4 * context * vocab_size * copies)))
