"""Answer requests that need no engine: the list of models, tokens of a text, health, counters."""

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.requests import Request

from minigpt.serve.api.errors import RESPONSES
from minigpt.serve.api.html import documented
from minigpt.serve.api.schemas import (
    Detokenized,
    DetokenizeRequest,
    Health,
    ModelCard,
    ModelList,
    Tokenized,
    TokenizeRequest,
)
from minigpt.serve.api.state import FIRST, Shared, State
from minigpt.serve.models import Listed

router, metrics = APIRouter(), APIRouter()


def _card(listed: Listed) -> ModelCard:
    return ModelCard(id=listed.name, created=listed.created)


@router.get("/v1/models", responses=RESPONSES)
async def models(state: Shared) -> ModelList:
    """Runs, their kept checkpoints (run@step), and their adapters (run+adapter)."""
    return ModelList(data=[_card(listed) for listed in (await state.models.catalog.listed()).values()])


@router.get("/v1/models/{model:path}", responses=RESPONSES)
async def model(model: str, state: Shared) -> ModelCard:
    """One model."""
    return _card(await state.models.catalog.find(model))


@router.post("/tokenize", responses=RESPONSES)
async def tokenize(asked: TokenizeRequest, state: Shared) -> Tokenized:
    """Ids of a text."""
    async with state.models.use(asked.model) as loaded:
        encode = loaded.run.tokenizer.encode
        ids = await asyncio.to_thread(lambda: encode(loaded.run.clean(asked.prompt)))
        return Tokenized(tokens=ids, count=len(ids), max_model_len=loaded.run.model.config.max_seq_len)


@router.post("/detokenize", responses=RESPONSES)
async def detokenize(asked: DetokenizeRequest, state: Shared) -> Detokenized:
    """The text of ids; special tokens are shown by name."""
    async with state.models.use(asked.model) as loaded:
        return Detokenized(prompt=loaded.run.tokenizer.decode(asked.tokens, skip_special=False))


@router.get("/health", responses={503: {"model": Health, "description": "A model is being loaded"}})
async def health(state: Shared) -> Health:
    """Whether the server is ready; 503 while it loads the models that it was started with."""
    ready = Health(status="ok" if state.ready else "loading")
    return ready if state.ready else JSONResponse(ready.model_dump(), 503)  # pyright: ignore[reportReturnType]


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The API's document as a page."""
    return HTMLResponse(documented(request.app.openapi()))


@metrics.get("/metrics", include_in_schema=False)
async def counted(state: Shared) -> Response:
    """The counters for Prometheus."""
    return PlainTextResponse(exposition(state), media_type="text/plain; version=0.0.4")


def exposition(state: State) -> str:
    """All counters in Prometheus' text format."""
    counts, meter, lines = state.engine.counts, state.meter, []

    def add(name: str, kind: str, about: str, rows: dict[str, float]) -> None:
        lines.extend([f"# HELP minigpt_{name} {about}", f"# TYPE minigpt_{name} {kind}"])
        lines.extend(f"minigpt_{name}{labels} {value}" for labels, value in rows.items())

    answers = {f'{{path="{path}",status="{status}"}}': float(n) for (path, status), n in meter.answers.items()}
    add("answers_total", "counter", "Answers by path and status.", answers)
    kinds = {"prompt": counts.prompt, "cached": counts.cached, "written": counts.written}
    add("tokens_total", "counter", "Tokens.", {f'{{kind="{kind}"}}': count for kind, count in kinds.items()})
    ended = {f'{{reason="{reason}"}}': float(count) for reason, count in counts.ended.items()}
    add("texts_total", "counter", "Texts by what ended them.", ended)
    add("turns_total", "counter", "Steps of the engine.", {"": counts.turns})
    add("texts_writing", "gauge", "Texts that are being written.", {"": state.engine.writing})
    add("texts_waiting", "gauge", "Texts that wait.", {"": state.engine.waiting})
    add("models_loaded", "gauge", "Models in memory.", {"": len(state.models.loaded)})
    add("models_bytes", "gauge", "Their weights.", {"": sum(one.bytes for one in state.models.loaded.values())})
    bounds = [*map(str, FIRST), "+Inf"]
    sums = [sum(meter.first[: place + 1]) for place in range(len(bounds))]
    name = "first_token_seconds"
    buckets = {f'_bucket{{le="{bound}"}}': float(total) for bound, total in zip(bounds, sums, strict=True)}
    add(name, "histogram", "Seconds to the first token.", buckets | {"_sum": meter.first_seconds, "_count": sums[-1]})
    return "\n".join(lines) + "\n"
