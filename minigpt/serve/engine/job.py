"""One text that a client waits for, and what it is told while the text is written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import torch

from minigpt.config import GenerationConfig
from minigpt.errors import MiniGPTError
from minigpt.generation.sampling import NO_RULES, Rules
from minigpt.generation.text.generate import Row
from minigpt.serve.engine.batch import Text
from minigpt.tokenizers import Tokenizer

Reason = Literal["eos", "stop", "length", "time"]


class TryLaterError(MiniGPTError):
    """It cannot be done now; `seconds` says when to try again."""

    def __init__(self, what: str, seconds: int):
        super().__init__(what)
        self.seconds = seconds


class BusyError(TryLaterError):
    """Too many texts wait."""


class UnavailableError(TryLaterError):
    """The model cannot be used now."""


class Score(NamedTuple):
    """A token, its log-probability in nats before any setting (None: nothing stands before it), the likeliest there."""

    id: int
    logprob: float | None
    top: list[tuple[int, float]]


class Read(NamedTuple):
    """The prompt was read: how many of its tokens were known already, and its scores if asked for."""

    cached: int
    scores: list[Score]


class Wrote(NamedTuple):
    """One more token; `text` is what may be shown now, which can be nothing."""

    text: str
    score: Score | None


class Ended(NamedTuple):
    """The text is complete; `text` is what was held back of it."""

    text: str
    reason: Reason


class Failed(NamedTuple):
    """The text will never be complete."""

    error: Exception


Event = Read | Wrote | Ended | Failed
SAMPLING = (
    "repetition_penalty frequency_penalty presence_penalty no_repeat_ngram_size min_new_tokens "
    "temperature top_k top_p min_p typical_p"
).split()
"""Settings that decide which token is chosen."""


@dataclass(eq=False)
class Job:
    """A text to write.

    Args:
        ids: of the prompt, at least one; the model reads the last of them that fit its context.
        config: settings; of them logprobs (also of the prompt with `score_prompt`), stop and those of sampling count.
        seed: of its draws.
        most: new tokens; 0 only reads the prompt.
        tell: called with each event, on the engine's `post`.
        deadline: on the engine's clock.
        rules: what is allowed, in ids.
        reuse: read on from an earlier text that begins alike.
        score_prompt: tell the scores of the prompt's tokens.
    """

    ids: list[int]
    tokenizer: Tokenizer
    config: GenerationConfig
    seed: int
    most: int
    tell: Callable[[Event], None]
    deadline: float = float("inf")
    rules: Rules = NO_RULES
    reuse: bool = False
    score_prompt: bool = False
    cancelled: bool = False
    """Set it from any thread; the text ends before its next token, and nothing more is told."""
    text: Text | None = None
    """Its ids so far, once the prompt was read."""
    generator: torch.Generator | None = None
    """Of its draws, on the model's device."""

    @cached_property
    def row(self) -> Row:
        """From ids to text."""
        return Row(self.tokenizer, self.config)

    @cached_property
    def adjusts(self) -> bool:
        """Whether what was written before changes what is allowed."""
        plain = GenerationConfig()
        settings = SAMPLING[: SAMPLING.index("temperature")]
        return bool(self.rules.bias) or any(getattr(self.config, name) != getattr(plain, name) for name in settings)

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """Equal for jobs whose tokens can be chosen together."""
        settings = tuple(getattr(self.config, name) for name in SAMPLING)
        return (*settings, self.rules.eos_id, tuple(sorted(self.rules.bias.items())))

    @property
    def new(self) -> int:
        """Tokens written."""
        return self.row.completion.tokens
