"""Share code between completions and chats: the texts of one request while they are written, counted, and streamed."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse

from minigpt.config import GenerationConfig
from minigpt.generation.text import Completion, Writing
from minigpt.serve.api.errors import RESPONSES, ApiError, as_api_error
from minigpt.serve.api.schemas import CachedTokens, Finish, Sampled, Usage
from minigpt.serve.api.state import State, started, unless_disconnected
from minigpt.serve.engine import Ended, Event, Job, Read, Score, Wrote
from minigpt.serve.models import Loaded

FINISH: dict[str, Finish] = {"eos": "stop", "stop": "stop", "length": "length", "time": "length"}
STREAM = "text/event-stream"
EVENT = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
STREAMED: dict[int | str, dict[str, Any]] = {**RESPONSES, 200: {"content": {STREAM: {"schema": EVENT}}}}
"""For the API's document: an answer that may be a stream, and the form of each event."""


@dataclass
class TextResult:
    """One text so far: its scores, its number of tokens, and why it ended."""

    text: str = ""
    scores: list[Score] = field(default_factory=list)
    read: list[Score] = field(default_factory=list)
    finish: Finish = "length"
    tokens: int = 0
    total: float = 0.0

    def take(self, event: Event) -> None:
        """Add an event."""
        if isinstance(event, Read):
            self.read = event.scores
        elif isinstance(event, Wrote):
            self.tokens += 1
            self.text += event.text
            if event.score is not None:
                self.scores.append(event.score)
                self.total += event.score.logprob or 0.0
        elif isinstance(event, Ended):
            self.text += event.text
            self.finish = FINISH[event.reason]

    @property
    def mean_logprob(self) -> float:
        """Mean log-probability of the text's tokens."""
        return self.total / max(1, self.tokens)


class Count:
    """Counts the tokens of a request from its events.

    Args:
        copies: texts for each prompt.
    """

    def __init__(self, jobs: Sequence[Job], copies: int, context: int):
        self.prompt = sum(len(job.ids) for job in jobs[::copies])
        self.read = sum(min(len(job.ids), context) for job in jobs[::copies])
        self.copies, self.cached, self.written = copies, 0, 0

    def take(self, number: int, event: Event) -> None:
        """Add an event of job `number`."""
        if isinstance(event, Read) and number % self.copies == 0:
            self.cached += event.cached
        self.written += isinstance(event, Wrote)

    def usage(self) -> Usage:
        """The counts in OpenAI's form."""
        return usage(self.prompt, self.written, self.cached, self.read - self.cached)


def usage(prompt: int, written: int, cached: int, read: int) -> Usage:
    """Counts in OpenAI's form."""
    details = CachedTokens(cached_tokens=cached, read_tokens=read)
    return Usage(
        prompt_tokens=prompt, completion_tokens=written, total_tokens=prompt + written, prompt_tokens_details=details
    )


def check_texts(count: int, state: State) -> None:
    """Raises ApiError for more texts than one request may ask for."""
    if count > state.limits.queue:
        raise ApiError(400, f"{count} texts in one request; this server allows {state.limits.queue}")


def check_search(asked: Sampled, prompts: int, copies: int, loaded: Loaded) -> None:
    """Raises ApiError for a search that is too wide, that is one of two, or that is asked to stream its answer."""
    if asked.searches and copies > (asked.n or 1):
        raise ApiError(400, "best_of and num_beams exclude each other; leave one out", "best_of")
    if asked.searches and prompts * (asked.num_beams or 1) > loaded.texts:
        raise ApiError(400, f"num_beams: {loaded.texts} beams for all prompts together is the limit here", "num_beams")
    if asked.stream and (asked.searches or copies > (asked.n or 1)):
        what = "num_beams" if asked.searches else "best_of"
        raise ApiError(400, f"{what} compares whole texts, so they cannot be streamed; leave stream out", what)


async def search(
    state: State, loaded: Loaded, prompts: Sequence[list[int]], config: GenerationConfig, seed: int
) -> list[list[Completion]]:
    """Find the best beams of each prompt."""
    model, tokenizer = loaded.run.model, loaded.run.tokenizer
    read = [ids[-model.config.max_seq_len :] for ids in prompts]
    return await state.background.do(lambda: Writing(model, tokenizer, read, config, [seed] * len(read)).finish())


def make_id(kind: str) -> str:
    """A new id: "cmpl-6f0c...."."""
    return f"{kind}-{secrets.token_hex(12)}"


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())


async def respond(prepare: Callable[[Any, Loaded, State], Any], asked: Sampled, request: Request, state: State) -> Any:
    """Answer a request, as a stream if it asks for one. Its model stays in memory until the end.

    Args:
        prepare: PreparedChat or PreparedCompletion.
    """

    async def whole() -> Any:
        async with state.models.use(asked.model) as loaded:
            return await (await asyncio.to_thread(prepare, asked, loaded, state)).whole()

    async def stream() -> AsyncGenerator[list[Any], None]:
        async with state.models.use(asked.model) as loaded:
            prepared = await asyncio.to_thread(prepare, asked, loaded, state)
            async with aclosing(prepared.pieces()) as pieces:
                async for piece in pieces:
                    yield piece

    if asked.stream:
        events = _events(await unless_disconnected(request, started(stream())))
        return StreamingResponse(events, media_type=STREAM, headers={"Cache-Control": "no-store"})
    return await unless_disconnected(request, whole())


async def _events(pieces: AsyncIterator[list[Any]]) -> AsyncGenerator[str, None]:
    """Server-sent events: one object each, then [DONE]; an error in the middle is an event too."""
    try:
        async for some in pieces:
            yield "".join(f"data: {piece.model_dump_json()}\n\n" for piece in some)
    except Exception as error:  # noqa: BLE001  the status is already sent, so any error goes into the stream
        yield f"data: {as_api_error(error).as_json()}\n\n"
    yield "data: [DONE]\n\n"
