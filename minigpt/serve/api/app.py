"""Put the app together: routes, errors, the guard around them, and what starts and ends with it."""

import asyncio
import sys
import warnings
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI

from minigpt import __version__
from minigpt.console import tell
from minigpt.serve.api import chat, completions, embeddings, errors, small
from minigpt.serve.api.guard import LOOPBACK, Guard
from minigpt.serve.api.state import State
from minigpt.serve.engine import Calls, Engine, tell_all
from minigpt.serve.limits import Limits
from minigpt.serve.models import Catalog, Models, UnavailableError

SWITCH = 0.0005
"""Longest time in seconds that the engine's thread keeps Python's lock from the event loop (Python's default is
0.005).
"""


class App(FastAPI):
    """FastAPI, without the answer 422 in the API's document, since this app answers 400 instead."""

    def openapi(self) -> dict[str, Any]:
        """The API's document, made when it is first asked for."""
        made = super().openapi()
        for methods in made["paths"].values():
            for found in methods.values():
                found["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            made["components"]["schemas"].pop(name, None)
        return made


def make_state(catalog: Catalog, limits: Limits | None = None, device: str = "auto", precision: str = "fp32") -> State:
    """What an app needs: the models of the catalog, on a device and in a precision as in `minigpt generate`."""
    limits = limits or Limits()
    engine = Engine(limits)
    return State(Models(catalog, engine, limits, device, precision), engine, limits)


def make_app(
    state: State,
    *,
    hosts: Collection[str] | None = LOOPBACK,
    key: str | None = None,
    metrics: bool = False,
    preload: Sequence[str] = (),
    routers: Sequence[APIRouter] = (),
) -> Guard:
    """The server as an ASGI app.

    Args:
        state: from `make_state`.
        hosts: names by which clients may call this server; None for any, if a key protects it.
        key: the key that clients must send; None: no key is needed.
        metrics: whether there is /metrics.
        preload: names of models that are loaded at the start; /health answers 503 until they are.
        routers: routers of more routes, in addition to those of the API.
    """
    engine = state.engine

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()

        def post(calls: Calls) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tell_all, calls)

        before = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH)
        engine.post = post
        engine.start()
        loading = asyncio.ensure_future(_load(state, preload))
        try:
            yield
        finally:
            loading.cancel()
            await asyncio.to_thread(engine.stop)
            sys.setswitchinterval(before)

    app = App(title="minigpt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.shared = state
    errors.install(app)
    every = [completions.router, chat.router, embeddings.router, small.router, *routers]
    every += [small.metrics] if metrics else []
    for router in every:
        app.include_router(router)
    paths = {getattr(route, "path", "") for router in every for route in router.routes}

    def seen(path: str, status: int) -> None:
        state.meter.answers[path if path in paths else "other", status] += 1

    return Guard(app, hosts, key, state.limits.body, seen)


async def _load(state: State, names: Sequence[str]) -> None:
    state.ready = not names
    for name in names:
        try:
            async with state.models.use(name):
                tell(f"loaded {name}")
        except UnavailableError as error:
            warnings.warn(str(error), stacklevel=2)
    state.ready = True
