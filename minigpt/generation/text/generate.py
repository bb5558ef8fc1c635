"""Generate text from prompts: encode them, run the engine or a search, decode the ids, and stop where asked to."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor

from minigpt.config import GenerationConfig, validate
from minigpt.console import counted
from minigpt.errors import GenerationError
from minigpt.generation.engine import steps
from minigpt.generation.search import LookupDrafter, ModelDrafter, beam_search, contrastive_search, speculate
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.generation.text.prompts import encode_prompts
from minigpt.generation.text.stops import Stops
from minigpt.model import GPT
from minigpt.runtime.device import evaluating
from minigpt.runtime.memory import too_large
from minigpt.runtime.memory_estimate import row_memory
from minigpt.tokenizers import TextStream, Tokenizer, load

GUESSES = 4
"""Number of tokens that a draft model guesses at a time, unless prompt_lookup sets another."""
Reason = Literal["eos", "stop", "length", "time"]


@dataclass(frozen=True)
class TokenScore:
    """A generated token: its text, its log-probability in nats, and the likeliest tokens at this position with theirs.

    Log-probabilities are the model's own, before any sampling setting.
    """

    text: str
    logprob: float
    top: list[tuple[str, float]]


@dataclass
class Completion:
    """One continuation. `reason`: why it ended. `score`: the beam's score, or with best_of the mean log-probability."""

    text: str = ""
    reason: Reason = "length"
    tokens: int = 0
    score: float | None = None
    logprobs: list[TokenScore] = field(default_factory=list)


class Row:
    """One text while it is generated: turns ids into pieces of text that may be shown."""

    def __init__(self, tokenizer: Tokenizer, config: GenerationConfig):
        self.tokenizer, self.config = tokenizer, config
        self.eos_id = tokenizer.eos_id if config.stop_at_eos else None
        texts, expression = map(tokenizer.respaced, config.stop), config.stop_regex
        expression = expression and tokenizer.respaced_regex(expression)
        stops = config.model_copy(update={"stop": tuple(texts), "stop_regex": expression})
        self.stream, self.stops = TextStream(tokenizer), Stops(stops)
        self.completion, self.ended, self.total = Completion(), False, 0.0
        self.found = True  # False: beam search found no text for this row

    def push(self, id_: int, logits: Tensor | None = None) -> str:
        """Add a token and return its new text. Pass `logits` [V] if its log-probability is wanted."""
        if self.ended:
            return ""
        self.completion.tokens += 1
        if logits is not None:
            self._score(id_, logits)
        if id_ == self.eos_id:
            return self.end("eos")
        piece = self.stops.push(self.stream.push(id_))
        self.completion.text += piece
        if self.stops.hit:
            self.end("stop")
        return piece

    def end(self, reason: Reason) -> str:
        """End the text, if it has not ended, and return the rest of it."""
        if self.ended:
            return ""
        self.ended, self.completion.reason = True, reason
        rest = self.stops.push(self.stream.flush()) + self.stops.flush()
        self.completion.text += rest
        return rest

    def _score(self, id_: int, logits: Tensor) -> None:
        scores = logits.float().log_softmax(-1)
        self.total += scores[id_].item()
        if self.config.logprobs is None:
            return
        values, ids = scores.topk(min(self.config.logprobs, len(scores)))
        label = self.tokenizer.label
        top = [(label(other), value) for value, other in zip(values.tolist(), ids.tolist(), strict=True)]
        self.completion.logprobs.append(TokenScore(label(id_), scores[id_].item(), top))


class Writing:
    """Generate continuations of prompts: iterate to get the new piece of each row, then read `completions`.

    Each prompt takes best_of x num_samples rows (num_samples rows with beams); the prompts keep their order.

    Args:
        model: in evaluation mode.
        prompts: texts or lists of ids, none empty. If one is longer than the context, its last part is read, with a
            warning.
        config: settings of generation.
        seeds: one for each prompt (default: config.seed for all). Sample i of a prompt draws with the seed + i.
        draft: a smaller model with the same tokenizer that guesses ahead (speculative decoding).

    Raises:
        GenerationError: a prompt is empty, or a setting does not fit.
        TokenizerError: the tokenizer cannot encode a text.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        prompts: Sequence[str | Sequence[int]],
        config: GenerationConfig,
        seeds: Sequence[int] | None = None,
        draft: GPT | None = None,
    ):
        self.model, self.tokenizer, self.config, self.draft = model, tokenizer, config, draft
        self.ids = encode_prompts(prompts, tokenizer, model.config.max_seq_len)
        self.seeds = [config.seed] * len(prompts) if seeds is None else list(seeds)
        if draft is not None and (config.num_beams > 1 or config.penalty_alpha or config.best_of > 1):
            raise GenerationError("a draft works with sampling only; do not set num_beams, penalty_alpha or best_of")
        if draft is not None and config.logprobs is not None:
            raise GenerationError("logprobs are not reported with a draft; leave one out")
        self.rules = make_rules(config, tokenizer)
        self.copies = config.num_samples * config.best_of
        candidates = min(config.top_k, model.config.padded_vocab_size) if config.penalty_alpha else 1
        rows = len(prompts) * max(self.copies * candidates, config.num_beams)
        if problem := too_large(rows * row_memory(model.config), f"{counted(rows, 'text')} at once"):
            raise GenerationError(f"{problem}; lower num_samples, best_of, num_beams or the batch")
        self.rows = [Row(tokenizer, config) for _ in range(len(prompts) * self.copies)]
        self.eos_id = self.rows[0].eos_id if self.rows else None
        self.deadline = time.monotonic() + config.max_seconds if config.max_seconds else None

    def __iter__(self) -> Iterator[list[str]]:
        if self.config.num_beams > 1:
            yield self._beams()
        elif self.draft is not None or self.config.prompt_lookup:
            yield from self._guessing()
        else:
            yield from self._steps()
        most = self.config.max_new_tokens
        yield [row.end("length" if row.completion.tokens == most else "time") for row in self.rows]

    def _late(self) -> bool:
        return self.deadline is not None and time.monotonic() >= self.deadline

    def finish(self) -> list[list[Completion]]:
        """Generate to the end and return the completions."""
        for _ in self:  # each row collects its pieces
            continue
        return self.completions

    @property
    def completions(self) -> list[list[Completion]]:
        """The num_samples completions of each prompt; beams are in order, best first."""
        found = []
        for first in range(0, len(self.rows), self.copies):
            rows = self.rows[first : first + self.copies]
            groups = [rows[i : i + self.config.best_of] for i in range(0, self.copies, self.config.best_of)]
            found.append([self._best(group) for group in groups if group[0].found])
        return found

    def _best(self, rows: list[Row]) -> Completion:
        if self.config.best_of == 1:
            return rows[0].completion
        for row in rows:
            row.completion.score = row.total / max(1, row.completion.tokens)
        return max((row.completion for row in rows), key=lambda completion: completion.score or 0.0)

    def _steps(self) -> Iterator[list[str]]:
        """Run sampling or contrastive search: all rows together, one token per row at a time."""
        prompts = [ids for ids in self.ids for _ in range(self.copies)]
        ended = torch.zeros(len(prompts), dtype=torch.bool, device=self.model.embedding.weight.device)
        common: Any = {"rules": self.rules, "ended": ended}
        if self.config.penalty_alpha:
            walk = contrastive_search(self.model, prompts, self.config, self.eos_id, **common)
        else:
            walk = steps(self.model, prompts, self.config, self.eos_id, seeds=self._row_seeds(), **common)
        scored = self.config.logprobs is not None or self.config.best_of > 1
        for step in walk:
            yield [
                row.push(id_, step.logits[number] if scored else None)
                for number, (row, id_) in enumerate(zip(self.rows, step.ids.tolist(), strict=True))
            ]
            ended |= torch.tensor([row.ended for row in self.rows], device=ended.device)
            if ended.all() or self._late():
                return

    def _row_seeds(self) -> list[int]:
        return [seed + copy for seed in self.seeds for copy in range(self.copies)]

    def _guessing(self) -> Iterator[list[str]]:
        """Run speculative decoding: one row after another, several tokens at a time."""
        for number, (row, seed) in enumerate(zip(self.rows, self._row_seeds(), strict=True)):
            guess = self.config.prompt_lookup
            drafter = ModelDrafter(self.draft, guess or GUESSES) if self.draft is not None else LookupDrafter(guess)
            ids = self.ids[number // self.copies]
            for some in speculate(self.model, ids, self.config, drafter, self.eos_id, rules=self.rules, seed=seed):
                piece = "".join(row.push(id_) for id_ in some)
                yield [piece if other is row else "" for other in self.rows]
                if row.ended or self._late():
                    break
            if self._late():
                return

    def _beams(self) -> list[str]:
        """Run beam search to its end. If it finds fewer texts than asked for, the remaining rows are dropped."""
        found = beam_search(
            self.model, self.ids, self.config, self.eos_id, rules=self.rules, seeds=self.seeds, deadline=self.deadline
        )
        for number, hypotheses in enumerate(found):
            rows = self.rows[number * self.copies : (number + 1) * self.copies]
            for row, hypothesis in zip_longest(rows, hypotheses):
                if hypothesis is None:
                    row.found, row.ended = False, True
                    continue
                for id_ in hypothesis.ids:
                    row.push(id_)
                row.completion.score = hypothesis.score
                if hypothesis.ended and self.eos_id is not None:
                    row.push(self.eos_id)
        return [row.completion.text for row in self.rows]


def stream_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, config: GenerationConfig | None = None
) -> Iterator[list[str]]:
    """Yield the new piece of text of every sample at each step. A piece never has half a character or a stop text.

    Raises: the same errors as `Writing`.
    """
    config = config or GenerationConfig()
    yield from Writing(model, tokenizer, [prompt], config)


def complete(
    model: GPT,
    prompts: Sequence[str | Sequence[int]],
    tokenizer: Tokenizer | None = None,
    seeds: Sequence[int] | None = None,
    draft: GPT | None = None,
    **settings: Any,
) -> list[list[Completion]]:
    """Continue many prompts of any lengths together. The result of each prompt does not depend on the others.

    complete(model, ["Once", "Far away there was"], max_new_tokens=50, stop=["."])[0][0].text

    Args:
        model: e.g. from GPT.from_pretrained(run).
        tokenizer: default: the one in the directory that the model came from.
        prompts, seeds, draft: see `Writing`.
        settings: fields of GenerationConfig.

    Returns:
        For each prompt a list of its num_samples completions.

    Raises:
        ConfigError, GenerationError, TokenizerError.
    """
    config = validate({"generation": settings}).generation
    if tokenizer is None:
        if model.source is None:
            raise GenerationError("no tokenizer: pass tokenizer=..., or take the model from GPT.from_pretrained(run)")
        tokenizer = load(model.source)
    with evaluating(model):
        return Writing(model, tokenizer, prompts, config, seeds, draft).finish()


def generate_text(model: GPT, prompt: str, tokenizer: Tokenizer | None = None, **settings: Any) -> str | list[str]:
    """Continue a prompt and return the new text, without the prompt. With num_samples above 1, return a list of texts.

    generate_text(model, prompt="Once upon a time", max_new_tokens=50, temperature=0.8)

    Arguments and errors are those of `complete`.
    """
    texts = [completion.text for completion in complete(model, [prompt], tokenizer, **settings)[0]]
    return texts[0] if len(texts) == 1 else texts
