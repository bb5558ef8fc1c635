"""Answer POST /v1/chat/completions: answer a chat, written with the template that the run was tuned with."""

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
from minigpt.serve.api.prompts import make_jobs, read_chat, seed_of, settings, turns_of
from minigpt.serve.api.schemas import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatRequest,
    Delta,
    Finish,
    Reply,
)
from minigpt.serve.api.scores import chat_scores
from minigpt.serve.api.state import Shared, State
from minigpt.serve.engine import Ended, Event, Job, Read, Score
from minigpt.serve.models import Loaded


class LeadingSpaces:
    """Removes the spaces at the beginning of an answer, which its ids have but its message should not."""

    def __init__(self, spaces: str):
        self.spaces, self.begun = spaces, not spaces

    def take(self, text: str) -> str:
        """The part of the next piece to show."""
        text = text if self.begun else text.lstrip(self.spaces)
        self.begun = self.begun or bool(text)
        return text


def check_fields(asked: ChatRequest) -> None:
    """Raises ApiError for a field that another one makes useless."""
    if asked.top_logprobs and not asked.logprobs:
        raise ApiError(400, "top_logprobs: is for logprobs true; set that too, or leave it out", "top_logprobs")
    old, new = asked.max_tokens, asked.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise ApiError(400, "max_tokens and max_completion_tokens say different things; leave one out", "max_tokens")


class PreparedChat:
    """A request whose model is loaded, and what to answer."""

    def __init__(self, asked: ChatRequest, loaded: Loaded, state: State):
        self.asked, self.loaded, self.state = asked, loaded, state
        self.n, self.beams = asked.n or 1, asked.searches and asked.max_tokens != 0
        turns = turns_of(loaded)
        check_fields(asked)
        check_search(asked, 1, self.n, loaded)
        check_texts(self.n, state)
        most = asked.max_completion_tokens if asked.max_tokens is None else asked.max_tokens
        logprobs = (asked.top_logprobs or 0) if asked.logprobs else None
        self.config = settings(asked, loaded, state.limits, most, logprobs=logprobs, stop=turns.stop)
        self.most = self.config.max_new_tokens if most is None else min(most, state.limits.tokens)
        self.ids = read_chat(asked.messages, loaded, self.config.max_new_tokens)
        self.spaces = "" if asked.messages[-1].role == "assistant" else turns.begin
        self.seed, self.id, self.created = seed_of(asked), make_id("chatcmpl"), now()

    def jobs(self) -> list[Job]:
        """The jobs of all answers."""
        return make_jobs(self.loaded, [self.ids], self.config, self.seed, self.n, most=self.most, reuse=True)

    def choice(self, index: int, text: str, finish: Finish, scores: list[Score]) -> ChatChoice:
        """An answer."""
        reply = Reply(content=LeadingSpaces(self.spaces).take(text))
        return ChatChoice(index=index, message=reply, logprobs=self._spelled(scores), finish_reason=finish)

    def _spelled(self, scores: list[Score]) -> ChatLogprobs | None:
        return chat_scores(scores, self.loaded.run.tokenizer) if self.asked.logprobs else None

    async def whole(self) -> ChatCompletion:
        """The whole answer."""
        jobs = self.jobs()
        results, count = [TextResult() for _ in jobs], Count(jobs, self.n, self.loaded.run.model.config.max_seq_len)
        if self.beams:
            (beams,) = await search(self.state, self.loaded, [self.ids], self.config, self.seed)
            choices = [self.choice(index, beam.text, FINISH[beam.reason], []) for index, beam in enumerate(beams)]
            counted = usage(count.prompt, sum(beam.tokens for beam in beams), 0, count.read)
        else:
            async with aclosing(self.state.write(self.loaded, jobs)) as events:
                async for some in events:
                    for number, event in some:
                        results[number].take(event)
                        count.take(number, event)
            choices = [self.choice(index, each.text, each.finish, each.scores) for index, each in enumerate(results)]
            counted = count.usage()
        return ChatCompletion(id=self.id, created=self.created, model=self.asked.model, choices=choices, usage=counted)

    def piece(self, index: int, delta: Delta, scores: ChatLogprobs | None, finish: Finish | None) -> ChatChunk:
        """A piece of one answer."""
        choice = ChatChunkChoice(index=index, delta=delta, logprobs=scores, finish_reason=finish)
        return ChatChunk(id=self.id, created=self.created, model=self.asked.model, choices=[choice])

    async def pieces(self) -> AsyncGenerator[list[ChatChunk], None]:
        """The answer, a few pieces at a time."""
        jobs = self.jobs()
        count = Count(jobs, self.n, self.loaded.run.model.config.max_seq_len)
        leading = [LeadingSpaces(self.spaces) for _ in jobs]
        async with aclosing(self.state.write(self.loaded, jobs)) as events:
            async for some in events:
                made = []
                for number, event in some:
                    count.take(number, event)
                    made += self._pieces(number, event, leading[number])
                if made:
                    yield made
        if self.asked.stream_options and self.asked.stream_options.include_usage:
            last = ChatChunk(id=self.id, created=self.created, model=self.asked.model, choices=[])
            last.usage = count.usage()
            yield [last]

    def _pieces(self, number: int, event: Event, leading: LeadingSpaces) -> list[ChatChunk]:
        """The pieces of an answer that one event adds."""
        if isinstance(event, Read):
            return [self.piece(number, Delta(role="assistant", content=""), None, None)]
        result = TextResult()
        result.take(event)
        text, scores = leading.take(result.text), self._spelled(result.scores) if result.scores else None
        made = [self.piece(number, Delta(content=text), scores, None)] if text or scores else []
        return [*made, self.piece(number, Delta(), None, result.finish)] if isinstance(event, Ended) else made


router = APIRouter()


@router.post("/v1/chat/completions", responses=STREAMED, response_model=ChatCompletion)
async def chat_completions(asked: ChatRequest, request: Request, state: Shared) -> ChatCompletion | Response:
    """Answer a chat."""
    return await respond(PreparedChat, asked, request, state)
