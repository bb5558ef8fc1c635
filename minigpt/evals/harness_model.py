"""Give lm-evaluation-harness our model: texts go in, log-probabilities and texts come out.

The windows are those of the harness' own Hugging Face model. That model gives the same scores for the exported run if
its prefix_token_id is set:
- A text is scored after <|endoftext|>, as in training; <|bos|> was never learned. If the tokenizer has no
  <|endoftext|>, the first token is given and not scored.
- A text longer than the context is cut into windows that do not overlap. The last window is a full context, and only
  its new tokens are scored.
- If a prompt leaves no room for the answer, only the end of the prompt is read.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lm_eval.api.model import TemplateLM  # pyright: ignore[reportMissingImports]  an extra
from lm_eval.models.utils import normalize_gen_kwargs  # pyright: ignore[reportMissingImports]
from lm_eval.utils import get_rolling_token_windows  # pyright: ignore[reportMissingImports]

from minigpt.errors import UserError, nearest
from minigpt.evals.perplexity import non_finite_loss, rows_at_once
from minigpt.evals.report import Run
from minigpt.generation.text import complete
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import evaluating

ANSWERS = 32
"""Answers that are generated together."""
Row = tuple[int, list[int], int]
"""One window: the index of its request, its ids, and how many of the last ids are scored."""
_SAME_NAME = ("top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "num_beams", "length_penalty")


class HarnessModel(TemplateLM):
    """The model of a loaded run.

    Args:
        run: from `load_run`.
        batch_size: windows at a time (default: by memory).
        progress: called with (requests or windows done, their total).
    """

    def __init__(self, run: Run, batch_size: int | None = None, progress: Callable[[int, int], None] | None = None):
        super().__init__()
        self.run, self.batch_size, self.progress = run, batch_size, progress
        self.max_length = run.model.config.max_seq_len

    @property
    def eot_token_id(self) -> Any:
        """The token before each scored text, the harness' prefix_token_id; None: there is no such token."""
        return self.run.tokenizer.eos_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **more: Any) -> list[int]:
        """Ids of a text, without a token before it."""
        return self.run.tokenizer.encode(string)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the likeliest) of each request."""
        return super().loglikelihood(list(requests), disable_tqdm=disable_tqdm)

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-probability of each whole text."""
        pairs = [((), [self.prefix_token_id], self.tok_encode(request.args[0])) for request in requests]
        return [logprob for logprob, _ in self._loglikelihood_tokens(pairs)]

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[Any], list[int]]], **more: Any
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether each of its tokens is the likeliest) of each request."""
        rows: list[Row] = [
            (at, ids, scored)
            for at, (_, context, continuation) in enumerate(requests)
            for ids, scored in windows(context, continuation, self.max_length)
            if scored
        ]
        rows.sort(key=lambda row: -len(row[1]))  # so that rows of similar length are in one batch
        nats, greedy = [0.0] * len(requests), [True] * len(requests)
        done = 0
        while done < len(rows):
            size = self.batch_size or rows_at_once(self.run.model, len(rows[done][1]), self.run.runtime.device.type)
            some = rows[done : done + size]
            for (at, _, _), loss, likeliest in zip(some, *self._score(some), strict=True):
                nats[at], greedy[at] = nats[at] + loss, greedy[at] and likeliest
            done += len(some)
            self._tell(done, len(rows))
        if not all(map(math.isfinite, nats)):
            raise non_finite_loss()
        return [(-loss, likeliest) for loss, likeliest in zip(nats, greedy, strict=True)]

    @torch.no_grad()
    def _score(self, rows: Sequence[Row]) -> tuple[list[float], list[bool]]:
        """(nats of the scored tokens, whether each of them is the likeliest) of every row."""
        width = max(len(ids) for _, ids, _ in rows) - 1
        inputs = torch.zeros(len(rows), width, dtype=torch.long)
        targets = torch.full_like(inputs, IGNORE)
        for number, (_, ids, scored) in enumerate(rows):
            inputs[number, : len(ids) - 1] = torch.tensor(ids[:-1])
            targets[number, len(ids) - 1 - scored : len(ids) - 1] = torch.tensor(ids[-scored:])
        targets = targets.to(self.run.runtime.device)
        with evaluating(self.run.model), self.run.runtime.autocast():
            logits = self.run.model(inputs.to(targets.device)).float()  # [B, T] -> [B, T, V]
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none").view(
            targets.shape
        )
        greedy = (logits.argmax(-1) == targets) | (targets == IGNORE)
        return nats.cpu().double().sum(1).tolist(), greedy.all(1).tolist()

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """The answer to each prompt, up to a stop text, the end of text, or the most tokens."""
        texts, groups, done = [""] * len(requests), {}, 0
        for at, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True), []).append(at)
        for places in groups.values():
            settings = generation_settings(requests[places[0]].args[1])
            room = self.max_length - settings["max_new_tokens"]
            most = room if room > 0 else max(1, self.max_length // 2)  # generation can continue past the context
            prompts = {at: self._prompt(requests[at].args[0])[-most:] for at in places}
            places.sort(key=lambda at: len(prompts[at]))
            for first in range(0, len(places), ANSWERS):
                some = places[first : first + ANSWERS]
                written = complete(self.run.model, [prompts[at] for at in some], self.run.tokenizer, **settings)
                for at, [completion, *_] in zip(some, written, strict=True):
                    texts[at] = completion.text
                done += len(some)
                self._tell(done, len(requests))
        return texts

    def _prompt(self, text: str) -> list[int]:
        ids = self.tok_encode(text)
        if not ids and self.prefix_token_id is None:
            raise UserError("the task has an empty prompt, and the tokenizer has no token that begins a text")
        return ids or [self.prefix_token_id]

    def _tell(self, done: int, total: int) -> None:
        if self.progress:
            self.progress(done, total)


def windows(context: Sequence[int | None], continuation: list[int], limit: int) -> Iterator[tuple[list[int], int]]:
    """Windows of a continuation after as much context as fits: (ids, how many of the last ids are scored).

    windows([1, 2], [3, 4], 3) -> ([1, 2, 3, 4], 2)
    windows([9], [1, 2, 3, 4], 3) -> ([9, 1, 2, 3], 3), ([1, 2, 3, 4], 1)
    """
    known = [id_ for id_ in context if id_ is not None]
    if not known:
        known, continuation = continuation[:1], continuation[1:]
    if len(continuation) <= limit:
        yield (known + continuation)[-limit - 1 :], len(continuation)
        return
    for inputs, targets in get_rolling_token_windows(continuation, known[-1], limit, 1):
        yield [*inputs, targets[-1]], len(targets)


def generation_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """A task's generation_kwargs as minigpt's settings. Raises UserError for one that minigpt does not have."""
    theirs: dict[str, Any] = dict(normalize_gen_kwargs(dict(given)))
    sampled, temperature = theirs.pop("do_sample"), theirs.pop("temperature", None)
    ours = {
        "max_new_tokens": theirs.pop("max_gen_toks"),
        "stop": tuple(text for text in theirs.pop("until") if text),
        "temperature": (1.0 if temperature is None else temperature) if sampled else 0.0,
    }
    for name in theirs:
        if name not in _SAME_NAME:
            known = ("do_sample", "max_gen_toks", "temperature", "until", *_SAME_NAME)
            raise UserError(f"generation_kwargs: {name} is not a setting of minigpt; {nearest(name, known)}")
    return ours | theirs
