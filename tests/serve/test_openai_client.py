"""The official openai client, unchanged, against a real server."""

from collections.abc import Iterator
from typing import Any

import pytest
from served import PROMPT, make_runs, served

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("uvicorn", reason="needs the extra serve")
openai = pytest.importorskip("openai", reason="needs the package openai")
KEY = "a-key"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with served(make_runs(tmp_path_factory.mktemp("runs")), key=KEY) as address:
        yield openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)


def test_models(client: Any):
    assert {"base", "base@2", "talks"} <= {model.id for model in client.models.list()}
    assert client.models.retrieve("base@1").owned_by == "minigpt"


def test_completions_whole_and_streamed(client: Any):
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 20, "seed": 1, "logprobs": 2}
    whole = client.completions.create(**asked).choices[0]
    pieces = list(client.completions.create(**asked, stream=True))
    assert "".join(piece.choices[0].text for piece in pieces) == whole.text
    tokens = [token for piece in pieces if (found := piece.choices[0].logprobs) for token in found.tokens]
    assert tokens == whole.logprobs.tokens
    assert client.completions.create(model="base", prompt="a", extra_body={"top_k": 1}).choices[0].text


def test_chats_whole_and_streamed(client: Any):
    asked = {"model": "talks", "messages": [{"role": "user", "content": "who?"}], "max_tokens": 20, "seed": 1}
    whole = client.chat.completions.create(**asked, logprobs=True, top_logprobs=2)
    assert len(whole.choices[0].logprobs.content[0].top_logprobs) == 2
    pieces = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)
    assert said == whole.choices[0].message.content
    assert pieces[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_embeddings(client: Any):
    found = client.embeddings.create(model="base", input=["the cat", "a dog"])  # asks for base64, and reads it
    assert len(found.data) == 2 and len(found.data[0].embedding) == 32
    assert all(isinstance(value, float) for value in found.data[0].embedding)


def test_errors_are_those_that_the_client_knows(client: Any):
    with pytest.raises(openai.NotFoundError, match="v1/models"):
        client.completions.create(model="bass", prompt="a")
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        client.chat.completions.create(model="base", messages=[{"role": "user", "content": "a"}])
    assert caught.value.code == "not_a_chat_model" and caught.value.param == "model"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="another").models.list()
