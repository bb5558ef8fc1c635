"""Answer POST /v1/completions: continue texts."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi import APIRouter, Request
from fastapi.responses import Response

from minigpt.serve.api.answer import (
    FINISH,
    STREAMED,
    Count,
    TextResult,
    check_search,
    check_texts,
    make_id,
    now,
    respond,
    search,
    usage,
)
from minigpt.serve.api.errors import ApiError
from minigpt.serve.api.prompts import encode, make_jobs, prompts_of, seed_of, settings
from minigpt.serve.api.schemas import Completion, CompletionChoice, CompletionRequest
from minigpt.serve.api.scores import CompletionScores
from minigpt.serve.api.state import Shared, State
from minigpt.serve.engine import Ended, Event, Job, Read
from minigpt.serve.models import Loaded

USUAL = 16
"""New tokens if max_tokens is left out, as in OpenAI's API."""


class PreparedCompletion:
    """A request whose model is loaded, and what to write for it."""

    def __init__(self, asked: CompletionRequest, loaded: Loaded, state: State):
        self.asked, self.loaded, self.state = asked, loaded, state
        self.n = asked.n or 1
        self.copies = max(self.n, asked.best_of or 1)
        self.beams = asked.searches and asked.max_tokens != 0
        if asked.best_of is not None and asked.best_of < self.n:
            raise ApiError(400, f"best_of {asked.best_of} is less than n {self.n}", "best_of")
        self.given = prompts_of(asked.prompt)
        check_texts(len(self.given) * self.copies, state)
        check_search(asked, len(self.given), self.copies, loaded)
        self.prompts = [encode(prompt, loaded) for prompt in self.given]
        self.scored = bool(asked.echo) and asked.logprobs is not None
        self._check_length()
        most = USUAL if asked.max_tokens is None else asked.max_tokens
        logprobs = 0 if asked.logprobs is None and self.copies > self.n else asked.logprobs
        self.config = settings(asked, loaded, state.limits, most, logprobs=logprobs)
        self.seed, self.most = seed_of(asked), min(most, state.limits.tokens)
        self.id, self.created = make_id("cmpl"), now()

    def _check_length(self) -> None:
        context, longest = self.loaded.run.model.config.max_seq_len, max(map(len, self.prompts))
        if self.scored and longest > context:
            raise ApiError(
                400,
                f"the prompt has {longest} tokens, but scores need all of it in the model's context of {context}",
                "prompt",
                "context_length_exceeded",
            )

    def jobs(self) -> list[Job]:
        """All texts, prompt after prompt."""
        how = {"most": self.most, "score_prompt": self.scored}
        return make_jobs(self.loaded, self.prompts, self.config, self.seed, self.copies, **how)

    def echoed(self, index: int) -> str:
        """The text before the text of a choice: the prompt, if echo asks for it."""
        if not self.asked.echo:
            return ""
        prompt = self.given[index // self.copies]
        return self.loaded.run.clean(prompt) if isinstance(prompt, str) else self.loaded.run.tokenizer.decode(prompt)

    def answer(self, choices: list[CompletionChoice]) -> Completion:
        """An answer, or a piece of one."""
        return Completion(id=self.id, created=self.created, model=self.asked.model, choices=choices)

    async def whole(self) -> Completion:
        """The whole answer."""
        if self.beams:
            return await self._searched()
        jobs = self.jobs()
        results = [TextResult() for _ in jobs]
        count = Count(jobs, self.copies, self.loaded.run.model.config.max_seq_len)
        async with aclosing(self.state.write(self.loaded, jobs)) as events:
            async for some in events:
                for number, event in some:
                    results[number].take(event)
                    count.take(number, event)
        choices = []
        for first in range(0, len(results), self.copies):
            best = sorted(range(first, first + self.copies), key=lambda at: -results[at].mean_logprob)
            for at in best[: self.n] if self.copies > self.n else range(first, first + self.n):
                choices.append(self._choice(len(choices), at, results[at]))
        answer = self.answer(choices)
        answer.usage = count.usage()
        return answer

    def _choice(self, index: int, at: int, result: TextResult) -> CompletionChoice:
        scores = None
        if self.asked.logprobs is not None:
            scores = CompletionScores(self.loaded.run.tokenizer).take([*result.read, *result.scores])
        text = self.echoed(at) + result.text
        return CompletionChoice(index=index, text=text, logprobs=scores, finish_reason=result.finish)

    async def _searched(self) -> Completion:
        found = await search(self.state, self.loaded, self.prompts, self.config, self.seed)
        choices, written = [], 0
        for number, beams in enumerate(found):
            for beam in beams:
                text = self.echoed(number * self.copies) + beam.text
                finish = FINISH[beam.reason]
                choices.append(CompletionChoice(index=len(choices), text=text, logprobs=None, finish_reason=finish))
                written += beam.tokens
        answer = self.answer(choices)
        sizes = [len(ids) for ids in self.prompts]
        context = self.loaded.run.model.config.max_seq_len
        answer.usage = usage(sum(sizes), written, 0, sum(min(size, context) for size in sizes))
        return answer

    async def pieces(self) -> AsyncGenerator[list[Completion], None]:
        """The answer, a few pieces at a time."""
        jobs = self.jobs()
        count = Count(jobs, self.copies, self.loaded.run.model.config.max_seq_len)
        scores = [CompletionScores(self.loaded.run.tokenizer) for _ in jobs]
        async with aclosing(self.state.write(self.loaded, jobs)) as events:
            async for some in events:
                made = []
                for number, event in some:
                    count.take(number, event)
                    choice = self._piece(number, event, scores[number])
                    if choice.text or choice.finish_reason or (choice.logprobs and choice.logprobs.tokens):
                        made.append(self.answer([choice]))
                if made:
                    yield made
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            last = self.answer([])
            last.usage = count.usage()
            yield [last]

    def _piece(self, number: int, event: Event, scores: CompletionScores) -> CompletionChoice:
        """The part of a choice that one event adds."""
        result = TextResult()
        result.take(event)
        text = self.echoed(number) if isinstance(event, Read) else result.text
        logprobs = scores.take([*result.read, *result.scores]) if self.asked.logprobs is not None else None
        finish = result.finish if isinstance(event, Ended) else None
        return CompletionChoice(index=number, text=text, logprobs=logprobs, finish_reason=finish)


router = APIRouter()


@router.post("/v1/completions", responses=STREAMED, response_model=Completion)
async def completions(asked: CompletionRequest, request: Request, state: Shared) -> Completion | Response:
    """Continue texts."""
    return await respond(PreparedCompletion, asked, request, state)
