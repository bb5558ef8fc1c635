"""Score a model that learns from the text it is scored on. Do not compare these scores with those of a fixed model.

Windows are read in the order of the text. Each window is scored first, and then the model learns from it, in one or
both of two ways:

    dynamic  one step of gradient descent on the window's loss (Krause et al., 2018, "Dynamic Evaluation of Neural
             Sequence Models"), on a copy of the weights
    cache    each hidden state of the window is kept with the token that followed it; later, tokens that followed
             similar states get more probability (Grave et al., 2017, "Improving Neural Language Models with a
             Continuous Cache")

Four points differ from the papers. The step of each tensor is divided by the root mean square of all its gradients so
far on this text; the paper does this for each weight, with gradients on the training text, which we do not read here.
The weights do not decay back to the trained ones. The cache compares states by their cosine, not by their dot product.
And it holds only earlier windows, since attention sees the present one; so the cache does not change the score of the
first window.

Measured with a model of 0.9 M parameters that had seen a third of WikiText-2 in byte pairs, windows of 128, 25,000
tokens of the validation split: plain 4.011 nats per token; dynamic at 1e-4 3.773, 3e-4 3.667, 1e-3 3.759 (scaled for
each weight 3.825, 3.722, 3.752; without a scale 3.664 at the best rate, and infinite at three times that rate); cache
3.704; both 3.600.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minigpt.data import eval_batches
from minigpt.errors import UserError
from minigpt.evals.perplexity import Score, check_finite, checked_stride, text_bytes
from minigpt.model import GPT
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import Runtime, evaluating

Method = Literal["dynamic", "cache", "both"]
LABEL = "adapted to the text it is scored on: not comparable with other scores"
"""This label is printed next to every such score."""
_MOST = 1e9  # upper limit of the settings: fp32 would overflow far above it, and nobody needs more


@dataclass(frozen=True)
class Adaptation:
    """How the model learns from the text.

    Attributes:
        method: dynamic, cache, or both.
        rate: dynamic: root mean square of a step's change to the weights of a tensor, for a gradient of usual size.
        cache_tokens: cache: how many of the latest states are kept.
        cache_share: cache: its weight in the probability; the model has the rest.
        cache_sharpness: cache: the cosine of two states is multiplied by this before the softmax.
    """

    method: Method = "both"
    rate: float = 1e-4
    cache_tokens: int = 2000
    cache_share: float = 0.1
    cache_sharpness: float = 20.0

    def __post_init__(self) -> None:
        for name, right, what in (
            ("method", self.method in get_args(Method), f"of {', '.join(get_args(Method))}"),
            ("rate", 0 < self.rate <= _MOST, f"above 0, up to {_MOST:g}"),
            ("cache_tokens", 1 <= self.cache_tokens <= _MOST, f"from 1 to {_MOST:g}"),
            ("cache_share", 0 <= self.cache_share < 1, "from 0 to below 1"),
            ("cache_sharpness", 0 <= self.cache_sharpness <= _MOST, f"from 0 to {_MOST:g}"),
        ):
            if not right:
                raise UserError(f"adapting: {name} {getattr(self, name)} is out of range; choose one {what}")


def adapted(how: Adaptation) -> Callable[..., Score]:
    """A `scorer` for `evaluate_run`: `evaluate_adapted` with these settings."""
    return partial(evaluate_adapted, how)


@torch.inference_mode(False)
def evaluate_adapted(
    how: Adaptation,
    model: GPT,
    tokens: npt.NDArray[Any],
    *,
    context: int,
    runtime: Runtime,
    stride: int | None = None,
    batch_size: int | None = None,
    token_lengths: npt.NDArray[np.int64] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Score:
    """Score each of tokens[1:] once, before the model learns from it. The model's own weights do not change.

    Args:
        how: the method, and its settings.
        model: a copy of it learns.
        tokens, context, runtime, stride, token_lengths, progress: see `evaluate`.
        batch_size: is only checked. Windows are read one by one, since the model learns from each before the next.

    Raises: as `evaluate`; UserError if the weights diverge.
    """
    stride = checked_stride(tokens, context, stride, batch_size)
    learner = _Learner(model, how.rate) if how.method in ("dynamic", "both") else None
    cache = _Cache(how) if how.method in ("cache", "both") else None
    model = learner.model if learner else model
    lengths = np.zeros(0, np.int64) if token_lengths is None else token_lengths
    columns: list[list[float]] = [[], [], []]
    done = 0
    with evaluating(model), torch.set_grad_enabled(learner is not None):  # also if the caller computes no gradients
        for inputs, targets in eval_batches(tokens, context, stride, 1):
            scored = targets[0] != IGNORE  # [T], N of them
            wanted = targets[0][scored].to(runtime.device)
            with runtime.autocast():
                hidden = model.hidden(inputs.to(runtime.device))[0][scored.to(runtime.device)]  # [N, C]
                logits = model.head(hidden)[:, : model.config.vocab_size].float()  # [N, V]
            own = F.cross_entropy(logits, wanted, reduction="none")  # [N]
            nats = own.detach() if cache is None else cache.mixed(own.detach(), hidden.detach().float(), wanted)
            columns[0].append(nats.cpu().double().sum().item())
            columns[1].append(len(wanted))
            columns[2].append(text_bytes(targets.numpy(), scored[None].numpy(), lengths)[0])
            if learner:
                learner.learn(own.mean())
            if cache:
                cache.keep(hidden.detach().float(), wanted)
            done += len(wanted)
            if progress:
                progress(done, len(tokens) - 1)
    if learner and np.isfinite(columns[0][0]) and not np.isfinite(columns[0]).all():
        raise UserError(f"the model diverged, learning at the rate {how.rate:g}; choose a smaller --adapt-rate")
    score = Score(np.array(columns[0]), np.array(columns[1], np.int64), np.array(columns[2], np.int64))
    return check_finite(score)


class _Learner:
    """A copy of the model that takes gradient steps.

    The mean square of a tensor's gradients is taken over all its entries and all steps so far.
    """

    def __init__(self, model: GPT, rate: float):
        self.model, self.rate, self.steps = copy.deepcopy(model).requires_grad_(), rate, 0
        self.parameters: Sequence[nn.Parameter] = list(self.model.parameters())
        self.squares = [torch.zeros((), device=p.device) for p in self.parameters]

    def learn(self, loss: Tensor) -> None:
        """One step down the gradient of the loss."""
        self.steps += 1
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient, square in zip(self.parameters, gradients, self.squares, strict=True):
                if gradient is not None:
                    square += (gradient.float().square().mean() - square) / self.steps
                    parameter -= (self.rate / (square.sqrt() + 1e-12)) * gradient


class _Cache:
    """The latest S states [S, C], scaled to unit length, and the tokens [S] that followed them."""

    def __init__(self, how: Adaptation):
        self.how = how
        self.states, self.tokens = torch.zeros(0), torch.zeros(0, dtype=torch.long)

    def mixed(self, nats: Tensor, hidden: Tensor, wanted: Tensor) -> Tensor:
        """-ln of the mixture's probability of the wanted tokens [N]; the model's own probability is exp(-nats)."""
        if not len(self.tokens):
            return nats
        alike = F.normalize(hidden, dim=-1) @ self.states.T  # [N, C] [C, S] -> [N, S]
        weights = (self.how.cache_sharpness * alike).softmax(-1)
        held = (weights * (self.tokens == wanted[:, None])).sum(-1)  # [N]
        share = self.how.cache_share  # logarithms, since e^-104 is 0 in fp32, with an infinite logarithm
        return -torch.logaddexp(math.log1p(-share) - nats, (share * held).log())

    def keep(self, hidden: Tensor, followed: Tensor) -> None:
        """Add states [N, C] and the tokens [N] that followed them; drop the oldest."""
        states = F.normalize(hidden, dim=-1)
        if len(self.tokens):
            states, followed = torch.cat((self.states, states)), torch.cat((self.tokens, followed))
        self.states, self.tokens = states[-self.how.cache_tokens :], followed[-self.how.cache_tokens :]
