"""Test the official openai clients, of Python and of npm, unchanged, against a real server."""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
from node_run import PACKAGES, needs_node
from served import PROMPT, make_runs, served

pytest.importorskip("fastapi", reason="needs the extra serve")
openai = pytest.importorskip("openai", reason="needs the package openai")
KEY = "a-key"


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with served(make_runs(tmp_path_factory.mktemp("runs")), key=KEY) as found:
        yield f"{found}/v1"


@pytest.fixture(scope="module")
def client(address: str) -> Any:
    return openai.OpenAI(base_url=address, api_key=KEY, max_retries=0)


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
    found = client.embeddings.create(model="base", input=["the cat", "a dog"])  # the client asks for base64
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


NODE = """
const [, openai, baseURL, apiKey, prompt] = process.argv;
const {default: OpenAI} = await import(openai);
const client = new OpenAI({baseURL, apiKey, maxRetries: 0});
const found = {models: [], pieces: "", said: "", errors: []};
for await (const model of client.models.list()) found.models.push(model.id);
found.owner = (await client.models.retrieve("base@1")).owned_by;

const asked = {model: "base", prompt, max_tokens: 20, seed: 1, logprobs: 2, top_k: 20};
found.whole = await client.completions.create(asked);
for await (const piece of await client.completions.create({...asked, stream: true}))
    found.pieces += piece.choices[0].text;

const chat = {model: "talks", messages: [{role: "user", content: "who?"}], max_tokens: 20, seed: 1};
found.chat = await client.chat.completions.create({...chat, logprobs: true, top_logprobs: 2});
const streamed = {...chat, stream: true, stream_options: {include_usage: true}};
for await (const piece of await client.chat.completions.create(streamed)) {
    found.said += piece.choices[0]?.delta.content ?? "";
    found.usage = piece.usage;
}
const runner = client.chat.completions.stream(chat);
found.gathered = await runner.finalContent();
found.embeddings = (await client.embeddings.create({model: "base", input: ["the cat", "a dog"]})).data;

const stranger = new OpenAI({baseURL, apiKey: "another", maxRetries: 0});
for (const wrong of [
    () => client.completions.create({model: "bass", prompt}),
    () => client.completions.create({model: "base", prompt, temperature: -1}),
    () => client.chat.completions.create({model: "base", messages: chat.messages}),
    () => stranger.models.list(),
]) {
    const error = await wrong().then(() => null, (error) => error);
    found.errors.push([error.constructor.name, error.status, error.code, error.param]);
}
console.log(JSON.stringify(found));
"""


@pytest.mark.slow
@needs_node("openai")
def test_the_client_of_npm_hears_what_that_of_python_hears(address: str, client: Any):
    words = ["node", "--input-type=module", "-e", NODE, str(PACKAGES / "openai/index.mjs"), address, KEY, PROMPT]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["models"] == [model.id for model in client.models.list()] and found["owner"] == "minigpt"
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 20, "seed": 1, "logprobs": 2}
    whole = client.completions.create(**asked, extra_body={"top_k": 20})
    assert found["whole"]["choices"] == whole.model_dump()["choices"]
    assert found["pieces"] == whole.choices[0].text
    chat = {"model": "talks", "messages": [{"role": "user", "content": "who?"}], "max_tokens": 20, "seed": 1}
    reply = client.chat.completions.create(**chat, logprobs=True, top_logprobs=2)
    said = reply.choices[0].message.content
    assert found["said"] == found["gathered"] == found["chat"]["choices"][0]["message"]["content"] == said
    assert len(found["chat"]["choices"][0]["logprobs"]["content"]) == found["usage"]["completion_tokens"]
    assert [len(each["embedding"]) for each in found["embeddings"]] == [32, 32]
    assert found["errors"] == [
        ["NotFoundError", 404, "model_not_found", "model"],
        ["BadRequestError", 400, None, "temperature"],
        ["BadRequestError", 400, "not_a_chat_model", "model"],
        ["AuthenticationError", 401, "invalid_api_key", None],
    ]
