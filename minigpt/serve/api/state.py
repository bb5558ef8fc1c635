"""Hold what all answers share: models, engine, limits, counters, and a thread for work outside the engine."""

import asyncio
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from concurrent.futures import Future
from contextlib import aclosing
from queue import SimpleQueue
from threading import Thread
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request

from minigpt.serve.api.errors import ApiError
from minigpt.serve.engine import BusyError, Ended, Engine, Event, Failed, Job
from minigpt.serve.limits import Limits
from minigpt.serve.models import Loaded, Models

Result = TypeVar("Result")
Piece = TypeVar("Piece")
MOST_WAITING = 16
"""Most beam searches and embeddings that wait; they are done one after another."""
FIRST = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
"""Bounds of the histogram of seconds to the first token."""


class Meter:
    """Counters for Prometheus."""

    def __init__(self) -> None:
        self.answers: Counter[tuple[str, int]] = Counter()
        self.first = [0] * (len(FIRST) + 1)
        self.first_seconds = 0.0

    def began(self, seconds: float) -> None:
        """Count a text that had its first token after `seconds`."""
        self.first[bisect_left(FIRST, seconds)] += 1
        self.first_seconds += seconds


class BackgroundThread:
    """A thread that does work outside the engine, one piece after another. It ends with the process."""

    def __init__(self) -> None:
        self._tasks: SimpleQueue[tuple[Future[Any], Callable[[], Any]]] = SimpleQueue()
        self._waiting = 0
        Thread(target=self._run, name="minigpt-background", daemon=True).start()

    async def do(self, work: Callable[[], Result]) -> Result:
        """The result of the work. Raises BusyError, and the errors of the work."""
        if self._waiting >= MOST_WAITING:
            raise BusyError("too many searches wait already; try again later", 5)
        future: Future[Result] = Future()
        self._waiting += 1
        try:
            self._tasks.put((future, work))
            return await asyncio.wrap_future(future)
        finally:
            self._waiting -= 1

    def _run(self) -> None:
        while True:
            future, work = self._tasks.get()
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except Exception as error:  # noqa: BLE001  raised again where the result is awaited
                    future.set_exception(error)


class State:
    """Shared by all answers."""

    def __init__(self, models: Models, engine: Engine, limits: Limits):
        self.models, self.engine, self.limits = models, engine, limits
        self.meter, self.ready = Meter(), True
        self.background = BackgroundThread()

    async def write(self, loaded: Loaded, jobs: Sequence[Job]) -> AsyncGenerator[list[tuple[int, Event]], None]:
        """Yield pairs (number of the job, event), all that have arrived, until all jobs are complete. If the client is
        gone, all jobs are cancelled.

        Raises: the error of a job that fails.
        """
        queue: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        begun, left = time.monotonic(), len(jobs)
        for number, job in enumerate(jobs):
            job.tell = lambda event, number=number: queue.put_nowait((number, event))
            job.deadline = self.engine.clock() + self.limits.seconds
        try:
            self.engine.submit(loaded.run.model, jobs, loaded.texts)
            first = True
            while left:
                await asyncio.sleep(0)  # a queue that is never empty would block all other tasks
                found = [await queue.get()]
                # several events wait only if the event loop is slow; then it sends them together
                while not queue.empty():
                    found.append(queue.get_nowait())
                for _, event in found:
                    if isinstance(event, Failed):
                        raise event.error
                    left -= isinstance(event, Ended)
                if first:
                    self.meter.began(time.monotonic() - begun)
                first = False
                yield found
        finally:
            for job in jobs:
                job.cancelled = True


def shared(request: Request) -> State:
    """The state of the app that a request came to."""
    return request.app.state.shared


Shared = Annotated[State, Depends(shared)]


async def unless_disconnected(request: Request, work: Awaitable[Result]) -> Result:
    """The result of the work, which is cancelled if the client goes away. ApiError is raised then, but nobody reads
    it.
    """
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(400, "the client went away")
        return task.result()
    finally:
        for each in (task, gone):
            each.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


async def started(pieces: AsyncGenerator[Piece, None]) -> AsyncGenerator[Piece, None]:
    """The same pieces, after the first has arrived: an error before it is raised here, not in the stream."""
    first = await anext(pieces)

    async def all_of_them() -> AsyncGenerator[Piece, None]:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return all_of_them()
