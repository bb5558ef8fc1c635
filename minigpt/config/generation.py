"""Settings of generation: how logits become text."""

import math
import re
from collections.abc import Callable
from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from minigpt.config.section import (
    Finite,
    NonNegativeFloat,
    NonNegativeInt,
    Positive,
    PositiveFloat,
    Section,
    Seed,
    Size,
    one_or_many,
)


class GenerationConfig(Section):
    """How logits become text. Settings are applied in the order listed here, penalties before temperature."""

    max_new_tokens: Size = 200
    """Tokens to add to the prompt."""
    logit_bias: dict[str, Finite] = Field(default_factory=dict)
    """Added to the logits of single tokens, given as text or as #id: {" yes": 2.5, "#13": -100}."""
    repetition_penalty: PositiveFloat = 1.0
    """For tokens that occurred before (in the prompt too), divides positive logits and multiplies negative ones."""
    frequency_penalty: Finite = 0.0
    """Subtracted from a token's logit once for each time it was generated."""
    presence_penalty: Finite = 0.0
    """Subtracted once from the logit of each token that was generated."""
    no_repeat_ngram_size: NonNegativeInt = 0
    """No sequence of this many tokens occurs twice, prompt included (0: off)."""
    bad_words: tuple[str, ...] = ()
    """Texts that must not be generated, alone or after a space."""
    min_new_tokens: NonNegativeInt = 0
    """The end-of-text token is not chosen before this many tokens."""
    temperature: NonNegativeFloat = 0.8
    """Divides the logits; 0 is greedy: the four filters below have no effect."""
    top_k: NonNegativeInt = 0
    """Keep the k likeliest tokens (0: all)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest tokens whose probabilities sum to p."""
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Keep tokens at least p times as likely as the likeliest."""
    typical_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Keep the fewest tokens of near-average surprise whose probabilities sum to p."""
    num_samples: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Continuations per prompt; with num_beams, how many of the best beams to return."""
    best_of: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Generate this many texts for each sample, and keep the one whose tokens are likeliest on average."""
    num_beams: Annotated[int, Field(gt=0, le=1000)] = 1
    """Beam search: hypotheses kept at each step (1: off); they are sampled unless temperature is 0."""
    length_penalty: Annotated[float, Field(ge=-10, le=10)] = 1.0
    """Beam search: a hypothesis' log-probability is divided by its length to this power."""
    early_stopping: bool = False
    """Beam search: end as soon as num_beams hypotheses are complete, even if a better one is possible."""
    num_beam_groups: Positive = 1
    """Beam search: groups that are kept different from each other (diverse beam search)."""
    diversity_penalty: NonNegativeFloat = 0.0
    """Beam search: subtracted from a token's score once for each earlier group that chose it at this step."""
    penalty_alpha: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Contrastive search among top_k tokens: weight of the similarity to the text so far (0: off). It takes the best
    token each time, so the temperature, the seed and the other filters have no effect."""
    prompt_lookup: NonNegativeInt = 0
    """Guess this many tokens at once, by copying what followed the last tokens earlier in the text; faster, with the
    same probabilities (0: off)."""
    seed: Seed = 0
    """Seed of the sampling; sample i uses seed + i."""
    stop_at_eos: bool = True
    """End at the tokenizer's end-of-text token."""
    stop: tuple[str, ...] = ()
    """Texts that end generation; they are not part of the output."""
    stop_regex: str | None = None
    """Regular expression that ends generation as soon as it matches the text so far; the match is not part of the
    output."""
    max_seconds: PositiveFloat | None = None
    """End after this many seconds."""
    logprobs: NonNegativeInt | None = None
    """Report each token's log-probability under the model, and this many of the likeliest alternatives."""

    _one_or_many = field_validator("stop", "bad_words", mode="before")(one_or_many)

    @field_validator("stop", "bad_words")
    @classmethod
    def _no_empty_text(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        if "" in texts:
            raise ValueError("an empty text would match everywhere; leave it out")
        return texts

    @field_validator("stop_regex")
    @classmethod
    def _compiles(cls, text: str | None) -> str | None:
        import regex

        if text is None:
            return None
        repeats = [max(map(int, re.findall(r"\d+", counts)), default=1) for counts in re.findall(r"\{[\d,]+\}", text)]
        if len(text) > 1000 or math.prod(max(1, count) for count in repeats) > 10_000:
            raise ValueError("too large: it may have 1000 characters, and the product of its repeats {n} may be 10,000")
        if re.search(r"\(\?(R|&|P>|[+-]?\d)", text):
            raise ValueError(f"{text!r} calls itself or a group, which may never end; write the group out in full")
        try:
            found = regex.compile(text).search("", timeout=1)
        except (regex.error, OverflowError, TimeoutError) as error:
            raise ValueError(f"{text!r} is not a regular expression ({error})") from None
        if found:
            raise ValueError(f"{text!r} matches the empty text, so nothing would be generated")
        return text

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.num_beams % self.num_beam_groups:
            raise ValueError(f"num_beams {self.num_beams} is not a multiple of num_beam_groups {self.num_beam_groups}")
        if self.num_beams > 1 and self.num_samples > self.num_beams:
            raise ValueError(f"num_samples {self.num_samples} is more than num_beams {self.num_beams}")
        if self.num_samples * self.best_of > 10_000:
            raise ValueError(
                f"num_samples {self.num_samples} x best_of {self.best_of} are more than 10,000 texts at once"
            )
        searches = [name for name, on in (
            ("num_beams", self.num_beams > 1), ("penalty_alpha", self.penalty_alpha > 0),
            ("prompt_lookup", self.prompt_lookup > 0), ("best_of", self.best_of > 1)) if on]  # fmt: skip
        if len(searches) > 1:
            raise ValueError(f"{' and '.join(searches)} exclude each other; set one")
        if self.logprobs is not None and (self.num_beams > 1 or self.prompt_lookup):
            raise ValueError(f"logprobs are not reported with {searches[0]}; leave one out")
        if self.penalty_alpha and self.top_k < 2:
            raise ValueError("penalty_alpha chooses among top_k tokens; set top_k to 2 or more, 4 is usual")
        return self

    def cleaned(self, clean: Callable[[str], str]) -> Self:
        """These settings with `stop` and `bad_words` cleaned as a run's text was: the run writes no other text."""
        texts = {name: tuple(filter(None, map(clean, getattr(self, name)))) for name in ("stop", "bad_words")}
        return self.model_copy(update=texts)
