"""Test the API as any program uses it: a real server, real requests."""

import base64
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from served import PROMPT, make_runs, served

from minigpt.generation.text import complete, generate_text
from minigpt.runs.load import LoadedRun, load_run
from minigpt.serve.limits import Limits

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def base(runs: Path) -> LoadedRun:
    return load_run(runs / "base", "cpu")


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[Any]:
    with served(runs, Limits(tokens=400), metrics=True) as address, httpx.Client(base_url=address, timeout=60) as made:
        yield made


def post(client: Any, path: str, **fields: Any) -> dict[str, Any]:
    answer = client.post(path, json=fields)
    assert answer.status_code == 200, answer.text
    return answer.json()


def events(client: Any, path: str, **fields: Any) -> list[dict[str, Any]]:
    """The pieces of a stream, which must end as OpenAI's do."""
    with client.stream("POST", path, json={**fields, "stream": True}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


def test_models_are_runs_their_kept_checkpoints_and_adapters(client: Any, runs: Path):
    found = [card["id"] for card in client.get("/v1/models").json()["data"]]
    places = {
        "base": "base",
        "base@1": "base/checkpoints/step-00000001",
        "base@2": "base/checkpoints/step-00000002",
        "base+pirate": "base/adapters/pirate",
        "talks": "talks",
        "talks@1": "talks/checkpoints/step-00000001",
    }
    assert sorted(found) == sorted(places)
    texts = {}
    for name, place in places.items():
        assert client.get(f"/v1/models/{name}").json()["id"] == name
        run = load_run(runs / place, "cpu")
        right = generate_text(run.model, PROMPT, run.tokenizer, max_new_tokens=12, temperature=0)
        answer = post(client, "/v1/completions", model=name, prompt=PROMPT, max_tokens=12, temperature=0)
        texts[name] = answer["choices"][0]["text"]
        assert texts[name] == right
    assert texts["base"] == texts["base@2"] and texts["talks"] == texts["talks@1"]
    assert len(set(texts.values())) == 4


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0},
        {"temperature": 1.1, "top_k": 9, "min_p": 0.01},
        {"typical_p": 0.8, "repetition_penalty": 1.2},
    ],
)
def test_a_completion_is_what_the_command_writes(client: Any, base: LoadedRun, fields: dict[str, Any], stream: bool):
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 70, "seed": 11, **fields}
    right = generate_text(base.model, PROMPT, base.tokenizer, max_new_tokens=70, seed=11, **fields)
    if stream:
        pieces = events(client, "/v1/completions", **asked)
        assert "".join(piece["choices"][0]["text"] for piece in pieces) == right
        assert pieces[-1]["choices"][0]["finish_reason"] in ("length", "stop")
    else:
        answer = post(client, "/v1/completions", **asked)
        assert answer["choices"][0]["text"] == right
        assert answer["usage"]["prompt_tokens"] == len(PROMPT)
        assert answer["usage"]["completion_tokens"] <= 70


def test_prompts_can_be_texts_or_ids_and_each_gets_n(client: Any, base: LoadedRun):
    ids = [base.tokenizer.encode(text) for text in (PROMPT, "the cat")]
    common = {"model": "base", "max_tokens": 8, "n": 2, "seed": 5, "temperature": 0.9}
    by_text = post(client, "/v1/completions", prompt=[PROMPT, "the cat"], **common)["choices"]
    by_ids = post(client, "/v1/completions", prompt=ids, **common)["choices"]
    settings = {"max_new_tokens": 8, "num_samples": 2, "seed": 5, "temperature": 0.9}
    right = [one.text for of in complete(base.model, [PROMPT, "the cat"], base.tokenizer, **settings) for one in of]
    assert [choice["text"] for choice in by_text] == [choice["text"] for choice in by_ids] == right
    assert [choice["index"] for choice in by_text] == [0, 1, 2, 3]
    assert post(client, "/v1/completions", prompt=ids[0], **common)["choices"][1]["text"] == right[1]


def test_best_of_answers_the_likeliest(client: Any, base: LoadedRun):
    common = {"model": "base", "prompt": PROMPT, "max_tokens": 12, "seed": 3, "temperature": 1.0}
    best = post(client, "/v1/completions", best_of=6, logprobs=0, **common)["choices"][0]
    every = post(client, "/v1/completions", n=6, logprobs=0, **common)["choices"]
    means = {
        choice["text"]: sum(choice["logprobs"]["token_logprobs"]) / len(choice["logprobs"]["tokens"])
        for choice in every
    }
    assert best["text"] == max(means, key=lambda text: means[text])


def test_echo_with_no_new_token_scores_a_text(client: Any, base: LoadedRun):
    answer = post(client, "/v1/completions", model="base", prompt=PROMPT, max_tokens=0, echo=True, logprobs=3)
    choice, ids = answer["choices"][0], base.tokenizer.encode(PROMPT)
    right = base.model(torch.tensor([ids]))[0].log_softmax(-1)
    assert choice["text"] == PROMPT == "".join(choice["logprobs"]["tokens"])
    assert choice["logprobs"]["token_logprobs"][0] is None
    own = [right[place, id_].item() for place, id_ in enumerate(ids[1:])]
    assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(own, abs=1e-4)
    assert all(3 <= len(top) <= 4 for top in choice["logprobs"]["top_logprobs"][1:])
    assert choice["logprobs"]["text_offset"] == list(range(len(PROMPT)))
    assert answer["usage"]["completion_tokens"] == 0


def test_beams_are_those_of_the_command(client: Any, base: LoadedRun):
    fields = {"num_beams": 4, "temperature": 0}
    answer = post(client, "/v1/completions", model="base", prompt=PROMPT, max_tokens=10, n=2, **fields)
    right = complete(base.model, [PROMPT], base.tokenizer, max_new_tokens=10, num_samples=2, **fields)[0]
    assert [choice["text"] for choice in answer["choices"]] == [one.text for one in right]
    nothing = post(client, "/v1/completions", model="base", prompt=PROMPT, max_tokens=0, n=2, **fields)
    assert [choice["text"] for choice in nothing["choices"]] == ["", ""] and nothing["usage"]["completion_tokens"] == 0


def test_stop_bias_and_usage_of_a_stream(client: Any, base: LoadedRun):
    common = {"model": "base", "prompt": PROMPT, "max_tokens": 60, "seed": 4, "temperature": 1.2}
    plain = post(client, "/v1/completions", **common)["choices"][0]["text"]
    pieces = events(client, "/v1/completions", stop=[plain[8:11]], stream_options={"include_usage": True}, **common)
    assert "".join(piece["choices"][0]["text"] for piece in pieces[:-1]) == plain[: plain.index(plain[8:11])]
    assert pieces[-2]["choices"][0]["finish_reason"] == "stop"
    assert pieces[-1]["choices"] == [] and pieces[-1]["usage"]["prompt_tokens"] == len(PROMPT)
    id_ = base.tokenizer.encode("q")[0]
    biased = post(client, "/v1/completions", logit_bias={str(id_): 100}, **common)["choices"][0]["text"]
    assert set(biased) == {"q"}


def test_stops_are_cleaned_as_the_text_was(base: LoadedRun):
    from minigpt.serve.api.prompts import settings
    from minigpt.serve.api.schemas import Sampled
    from minigpt.serve.models import Loaded

    lower = replace(base, config=base.config.changed(data={"clean": ("lower",)}))
    loaded, asked = Loaded((lower.path, 0), lower, 1), Sampled(model="base", stop="THE")
    assert settings(asked, loaded, Limits(), None, logprobs=None, stop=["USER:"]).stop == ("the", "USER:")


CHAT = [{"role": "system", "content": "the cat"}, {"role": "user", "content": "who ran?"}]


def test_a_chat_is_spelled_by_the_runs_template(client: Any, runs: Path):
    talks = load_run(runs / "talks", "cpu")
    fields = {"model": "talks", "max_tokens": 20, "seed": 2, "temperature": 0.7}
    answer = post(client, "/v1/chat/completions", messages=CHAT, **fields)
    prompt = "System: the cat\nUser: who ran?\nAssistant:"
    right = generate_text(talks.model, prompt, talks.tokenizer, max_new_tokens=20, seed=2, temperature=0.7)
    assert isinstance(right, str)
    said = answer["choices"][0]["message"]
    assert said["role"] == "assistant" and said["content"] == right.split("\nUser:")[0].lstrip(" ")
    pieces = events(client, "/v1/chat/completions", messages=CHAT, **fields)
    assert pieces[0]["choices"][0]["delta"]["role"] == "assistant"
    assert "".join(piece["choices"][0]["delta"].get("content") or "" for piece in pieces) == said["content"]


def test_the_next_turn_of_a_chat_reads_only_what_is_new(client: Any):
    fields = {"model": "talks", "max_tokens": 4, "temperature": 0}
    first = post(client, "/v1/chat/completions", messages=CHAT[1:], **fields)
    reply = {"role": "assistant", "content": first["choices"][0]["message"]["content"]}
    turns = [*CHAT[1:], reply, {"role": "user", "content": "a"}]
    details = post(client, "/v1/chat/completions", messages=turns, **fields)["usage"]["prompt_tokens_details"]
    assert details["cached_tokens"] >= len("User: who ran?\nAssistant:")


def test_log_probabilities_of_a_chat(client: Any):
    asked = {"model": "talks", "messages": CHAT, "max_tokens": 3, "logprobs": True, "top_logprobs": 2, "temperature": 0}
    content = post(client, "/v1/chat/completions", **asked)["choices"][0]["logprobs"]["content"]
    for token in content:
        assert len(token["top_logprobs"]) == 2 and bytes(token["bytes"]).decode() == token["token"]
        assert token["logprob"] == pytest.approx(token["top_logprobs"][0]["logprob"])


def test_embeddings_are_the_mean_of_the_last_hidden_states(client: Any, base: LoadedRun):
    answer = post(client, "/v1/embeddings", model="base", input=[PROMPT, "the cat"])
    ids = torch.tensor([base.tokenizer.encode("the cat")])
    right = base.model.hidden(ids)[0].mean(0)
    assert answer["data"][1]["embedding"] == pytest.approx(right.tolist(), abs=1e-4)
    packed = post(client, "/v1/embeddings", model="base", input="the cat", encoding_format="base64")
    found = torch.frombuffer(bytearray(base64.b64decode(packed["data"][0]["embedding"])), dtype=torch.float32)
    assert torch.allclose(found, right, atol=1e-4)


def test_tokens_of_a_text_and_back(client: Any):
    found = post(client, "/tokenize", model="base", prompt=PROMPT)
    assert found["count"] == len(found["tokens"]) == len(PROMPT) and found["max_model_len"] == 64
    assert post(client, "/detokenize", model="base", tokens=found["tokens"])["prompt"] == PROMPT


LONG = "a" * 200
WRONG: list[tuple[str, dict[str, Any] | bytes, int, str]] = [
    ("/v1/completions", b'{"model": ', 400, "not JSON"),
    ("/v1/completions", b'{"model": "\xff"}', 400, "UTF-8"),
    ("/v1/completions", b"[" * 100_000, 400, "body"),
    ("/v1/completions", {"prompt": "x"}, 400, "model"),
    ("/v1/completions", {"model": "bass", "prompt": "x"}, 404, "/v1/models"),
    ("/v1/completions", {"model": "base", "prompt": "x", "max_tokens": "5"}, 400, "max_tokens"),
    ("/v1/completions", {"model": "base", "prompt": "x", "temperature": -1}, 400, "temperature"),
    ("/v1/completions", {"model": "base", "prompt": [5, 10_000]}, 400, "no token 10000"),
    ("/v1/completions", {"model": "base", "prompt": "x", "logit_bias": {"a": 1}}, 400, "logit_bias"),
    ("/v1/completions", {"model": "base", "prompt": "x", "n": 3, "best_of": 2}, 400, "best_of"),
    ("/v1/completions", {"model": "base", "prompt": "x", "best_of": 2, "stream": True}, 400, "streamed"),
    ("/v1/completions", {"model": "base", "prompt": "x", "best_of": 2, "num_beams": 2}, 400, "best_of and num_beams"),
    ("/v1/completions", {"model": "base", "prompt": ["x"] * 300, "n": 2}, 400, "600 texts"),
    ("/v1/completions", {"model": "base", "prompt": "x", "num_beams": 2, "n": 3}, 400, "num_samples"),
    ("/v1/completions", {"model": "base", "prompt": ["x"] * 64, "num_beams": 8}, 400, "256 beams"),
    ("/v1/completions", {"model": "base", "prompt": LONG, "echo": True, "logprobs": 1}, 400, "context"),
    ("/v1/chat/completions", {"model": "base", "messages": CHAT}, 400, "/v1/completions"),
    ("/v1/chat/completions", {"model": "talks", "messages": CHAT[:1]}, 400, "user"),
    ("/v1/chat/completions", {"model": "talks", "messages": []}, 400, "messages"),
    ("/v1/chat/completions", {"model": "talks", "messages": CHAT, "top_logprobs": 2}, 400, "logprobs true"),
    (
        "/v1/chat/completions",
        {"model": "talks", "messages": CHAT, "max_tokens": 3, "max_completion_tokens": 4},
        400,
        "different things",
    ),
    ("/v1/embeddings", {"model": "base", "input": LONG}, 400, "context"),
    ("/v1/embeddings", {"model": "base", "input": "x", "dimensions": 8}, 400, "32 numbers"),
    ("/detokenize", {"model": "base", "tokens": [10_000]}, 400, "10000"),
    ("/v1/completions", b"x" * 5_000_000, 413, "bytes"),
    ("/v1/nothing", {}, 404, "Not Found"),
]


@pytest.mark.parametrize(("path", "body", "status", "said"), WRONG)
def test_a_wrong_request_gets_one_error_object(client: Any, path: str, body: Any, status: int, said: str):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    error = answer.json()["error"]
    assert (answer.status_code, error.keys()) == (status, {"message", "type", "param", "code"})
    assert said in error["message"] and "\n" not in error["message"]


def no_end(base: LoadedRun) -> dict[str, float]:
    """A bias against the end of text, so that a text ends only by its length."""
    return {str(base.tokenizer.eos_id): -1000}


def test_a_client_that_goes_away_frees_its_place(client: Any, base: LoadedRun):
    asked = {"model": "base", "prompt": PROMPT, "max_tokens": 400, "stream": True, "logit_bias": no_end(base)}
    for _ in range(3):
        with client.stream("POST", "/v1/completions", json=asked) as answer:
            next(answer.iter_lines())
    with pytest.raises(httpx.ReadTimeout):
        client.post("/v1/completions", json={**asked, "stream": False, "n": 60}, timeout=0.05)
    free = ("minigpt_texts_writing 0", "minigpt_texts_waiting 0", 'reason="cancelled"')
    end, counted = time.monotonic() + 60, ""
    while not all(line in counted for line in free):
        assert time.monotonic() < end, counted
        time.sleep(0.02)
        counted = client.get("/metrics").text


def test_a_full_queue_is_told_with_a_time(runs: Path, base: LoadedRun):
    asked = {"model": "base", "prompt": "a", "max_tokens": 10**6, "n": 3, "logit_bias": no_end(base)}
    with (
        served(runs, Limits(texts=1, queue=4, tokens=10**6)) as address,
        httpx.Client(base_url=address, timeout=60) as client,
        client.stream("POST", "/v1/completions", json={**asked, "stream": True}) as answer,
    ):
        lines = answer.iter_lines()  # keep a reference: the stream closes when the iterator is deleted
        next(lines)
        full = client.post("/v1/completions", json=asked)
        assert client.get("/health").json() == {"status": "ok"}
    assert (full.status_code, full.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    assert int(full.headers["retry-after"]) >= 1


def test_a_model_gives_its_memory_back_for_another(runs: Path):
    with (
        served(runs, Limits(memory=200_000), metrics=True) as address,
        httpx.Client(base_url=address, timeout=60) as client,
    ):
        for name in ("base", "talks", "base@1", "base"):
            post(client, "/v1/completions", model=name, prompt="a", max_tokens=2)
            assert "minigpt_models_loaded 1" in client.get("/metrics").text
