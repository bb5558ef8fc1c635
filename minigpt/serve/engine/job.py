"""Describe one text that a client waits for, and the events that it gets while the text is written."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch

from minigpt.config import GenerationConfig
from minigpt.errors import MiniGPTError
from minigpt.generation.sampling import NO_RULES, Rules
from minigpt.generation.text.generate import Reason, Row
from minigpt.serve.engine.batch import Text
from minigpt.tokenizers import Tokenizer


class TryLaterError(MiniGPTError):
    """The request cannot be done now; `seconds` says when to try again."""

    def __init__(self, what: str, seconds: int):
        super().__init__(what)
        self.seconds = seconds


class BusyError(TryLaterError):
    """Too many texts wait."""


class UnavailableError(TryLaterError):
    """The model cannot be used now."""


class Score(NamedTuple):
    """A token, its log-probability in nats before any setting (None for the first token), and the likeliest tokens
    there.
    """

    id: int
    logprob: float | None
    top: list[tuple[int, float]]


class Read(NamedTuple):
    """The prompt was read: how many of its tokens were known already, and its scores if asked for."""

    cached: int
    scores: list[Score]


class Wrote(NamedTuple):
    """One more token; `text` is what may be shown now, possibly nothing."""

    text: str
    score: Score | None


class Ended(NamedTuple):
    """The text is complete; `text` is the part that was held back."""

    text: str
    reason: Reason


class Failed(NamedTuple):
    """The text failed and will never be complete."""

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
        ids: ids of the prompt, at least one. The model reads the last ones that fit into its context.
        config: settings. Only logprobs (with `score_prompt` also of the prompt), stop and sampling settings are used.
        seed: seed of its random draws.
        most: most new tokens; 0 only reads the prompt.
        tell: called with each event, on the engine's `post`.
        deadline: time of the engine's clock at which the text ends.
        rules: which ids are allowed.
        reuse: continue from an earlier text with the same beginning.
        score_prompt: also report the scores of the prompt's tokens.
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
    """Set it from any thread; the text ends before its next token, and no more events follow."""
    text: Text | None = None
    """Its ids so far; set when the prompt was read."""
    generator: torch.Generator | None = None
    """Random generator of its draws, on the model's device."""

    @cached_property
    def row(self) -> Row:
        """Turns ids into text."""
        return Row(self.tokenizer, self.config)

    @cached_property
    def adjusts(self) -> bool:
        """Whether the tokens written so far change which tokens are allowed."""
        plain = GenerationConfig()
        settings = SAMPLING[: SAMPLING.index("temperature")]
        ruled = self.rules.bias or self.rules.bad_words
        return bool(ruled) or any(getattr(self.config, name) != getattr(plain, name) for name in settings)

    @cached_property
    def kind(self) -> tuple[object, ...]:
        """Equal for jobs whose tokens can be chosen together."""
        settings = tuple(getattr(self.config, name) for name in SAMPLING)
        return (*settings, self.rules.eos_id, tuple(sorted(self.rules.bias.items())), self.rules.bad_words)

    @property
    def new(self) -> int:
        """Number of tokens written."""
        return self.row.completion.tokens
