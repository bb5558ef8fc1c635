"""Answer POST /v1/embeddings: a text as a vector, the mean of its last hidden states.

The states are those that the head reads, after the last norm. The model was trained to continue texts, not to compare
them: expect only that texts with similar words are near each other.
"""

import asyncio
import base64
from collections.abc import Sequence

import numpy as np
import torch
from fastapi import APIRouter, Request

from minigpt.serve.api.answer import check_texts
from minigpt.serve.api.errors import RESPONSES, ApiError
from minigpt.serve.api.prompts import encode, prompts_of
from minigpt.serve.api.schemas import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage
from minigpt.serve.api.state import Shared, State, unless_disconnected
from minigpt.serve.models import Loaded


@torch.inference_mode()
def mean_states(loaded: Loaded, prompts: Sequence[list[int]]) -> list[np.ndarray]:
    """One vector [C] per prompt."""
    model = loaded.run.model
    device = model.embedding.weight.device
    return [model.hidden(torch.tensor([ids], device=device))[0].float().mean(0).cpu().numpy() for ids in prompts]


def _packed(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


async def answer(asked: EmbeddingRequest, state: State) -> EmbeddingList:
    """The answer to a request."""
    async with state.models.use(asked.model) as loaded:
        width = loaded.run.model.config.embed_dim
        if asked.dimensions not in (None, width):
            raise ApiError(400, f"dimensions: this model's vectors have {width} numbers, no other count", "dimensions")
        given = prompts_of(asked.input)
        check_texts(len(given), state)
        prompts = await asyncio.to_thread(lambda: [encode(prompt, loaded) for prompt in given])
        longest, context = max(map(len, prompts)), loaded.run.model.config.max_seq_len
        if longest > context:
            raise ApiError(
                400,
                f"a text has {longest} tokens, more than the model's context of {context}",
                "input",
                "context_length_exceeded",
            )
        vectors = await state.background.do(lambda: mean_states(loaded, prompts))
    spelled = [_packed(vector) if asked.encoding_format == "base64" else vector.tolist() for vector in vectors]
    count = sum(map(len, prompts))
    return EmbeddingList(
        data=[Embedding(index=index, embedding=each) for index, each in enumerate(spelled)],
        model=asked.model,
        usage=EmbeddingUsage(prompt_tokens=count, total_tokens=count),
    )


router = APIRouter()


@router.post("/v1/embeddings", responses=RESPONSES)
async def embeddings(asked: EmbeddingRequest, request: Request, state: Shared) -> EmbeddingList:
    """Turn texts into vectors."""
    return await unless_disconnected(request, answer(asked, state))
