"""Attack every parameter of every route; with -s the answers are printed.

pytest -s -m "slow or not slow" tests/serve/test_attacks.py
"""

import asyncio
import json
import logging
import re
import time
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from page_run import SHAPES, TEXT, save_run
from served import make_runs, served

from minigpt.config import TokenizerConfig
from minigpt.tokenizers import build

pytest.importorskip("fastapi", reason="needs the extra serve")
KEY = "sesame-42"
SECRET = "what no answer may hold"
MARKUP = "<img src=x onerror=alert(1)>"
CLIMBS = [
    "../outside", "..%2Foutside", "%2e%2e%2foutside", "..\\outside", "base/../../outside", "....//outside",
    "/etc/passwd", "file:///etc/passwd", "C:\\outside", "outside\0", "~/outside", ".", "",
]  # fmt: skip
Request = tuple[str, str, Any]
"""Method, path with query, body."""
NO_RUN = {"name": "none"}
NEW_RUN = {"text": "none", "budget": "1m", "name": "new", "settings": {"train.max_steps": "3"}}
BODIES: dict[str, dict[str, Any]] = {
    "/v1/completions": {
        "model": "base", "prompt": "a", "stop": "b", "user": "c", "suffix": "", "logit_bias": {"1": 1.0},
        "max_tokens": 1,
    },
    "/v1/chat/completions": {
        "model": "talks", "messages": [{"role": "user", "content": "a"}], "stop": ["b"], "user": "c", "max_tokens": 1,
        "logit_bias": {"1": 1.0}, "response_format": {"type": "text"},
    },
    "/v1/embeddings": {"model": "base", "input": "a", "encoding_format": "float", "user": "c"},
    "/tokenize": {"model": "base", "prompt": "a"},
    "/detokenize": {"model": "base", "tokens": [1]},
    "/api/presets": {"name": "mine", "settings": {"temperature": 1.0}},
    "/api/texts": {"name": "my.txt", "text": "a", "first": True, "done": True, "key": "b"},
    "/api/inspect": {"text": "none", "name": "base"},
    "/api/tokens": {"text": "a", "name": "base"},
    "/api/check": NEW_RUN,
    "/api/plan": NEW_RUN,
    "/api/start": NEW_RUN,
    "/api/floors": NO_RUN,
    "/api/stop": NO_RUN,
    "/api/resume": NO_RUN,
    "/api/note": NO_RUN | {"note": "a"},
    "/api/delete": NO_RUN,
    "/api/why": {"model": "base", "text": "a"},
    "/api/inside": {"model": "base", "text": "a", "factors": {"a": 1.0}},
}  # fmt: skip
"""For each route that takes a body: a complete one, with every field that can hold a text."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """runs/, with one run that has markup in its name and its vocabulary; and a run outside, which must not be
    reachable.
    """
    found = tmp_path_factory.mktemp("served")
    make_runs(found / "runs")
    tokenizer = build(TokenizerConfig(kind="bpe", vocab_size=300), [(MARKUP + TEXT[:40]) * 50])
    save_run(found / "runs" / MARKUP, tokenizer, SHAPES["gpt2"], {})
    save_run(found / "outside", tokenizer, SHAPES["gpt2"], {})
    with (found / "outside" / "config.yaml").open("a") as file:
        file.write(f"# {SECRET}\n")
    return found


def routes() -> Iterator[tuple[str, str, Any]]:
    """Method, path and route object of every route."""
    from minigpt.serve.api import chat, completions, embeddings, small
    from minigpt.serve.api.app import make_state
    from minigpt.serve.models import Catalog
    from minigpt.serve.workbench import Workbench

    page = Workbench(make_state(Catalog([Path()]))).router()
    for router in (completions.router, chat.router, embeddings.router, small.router, page):
        for route in router.routes:
            for method in route.methods:  # pyright: ignore[reportAttributeAccessIssue]
                yield method, route.path, route  # pyright: ignore[reportAttributeAccessIssue]


def plain() -> Iterator[Request]:
    """An ordinary request to each route."""
    for method, path, _ in routes():
        yield method, re.sub("{.*}", "none", path), BODIES[path] if method == "POST" else None


def everywhere(text: str) -> Iterator[Request]:
    """Requests with the text in the place of each parameter."""
    for method, path, route in routes():
        for param in route.dependant.path_params:
            for safe in ("", "/\\%.:~"):
                yield method, path.replace(f"{{{param.name}:path}}", quote(text, safe)), None
        for param in route.dependant.query_params:
            yield method, f"{path}?{param.name}={quote(text, '')}", None
        if method == "POST":
            assert set(BODIES[path]) >= _texts_of(route), "give the new field of this route a place in BODIES"
            for body in _replaced(BODIES[path], text):
                yield method, path, body


def _texts_of(route: Any) -> set[str]:
    """Fields of a route's body that can hold a text."""
    (body,) = route.dependant.body_params
    fields = body.field_info.annotation.model_fields
    return {name for name, field in fields.items() if "str" in repr(field.annotation) and "tools" not in name}


def _replaced(value: Any, text: str, top: bool = True) -> Iterator[Any]:
    """Copies of a body, each with one text, or one key below the first row, replaced."""
    if isinstance(value, str):
        yield text
    elif isinstance(value, list):
        for at, each in enumerate(value):
            yield from (value[:at] + [new] + value[at + 1 :] for new in _replaced(each, text, False))
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from (value | {name: new} for new in _replaced(each, text, False))
            if not top:
                yield {text: each}


class Attacker:
    """Sends requests unchanged, also those that an ordinary client would refuse to send, and counts the answers."""

    def __init__(self, address: str):
        self.host, self.got = address.removeprefix("http://"), dict[str, Counter[int]]()
        self.line = HTTPConnection(self.host, timeout=600)

    def send(self, attack: str, request: Request, **headers: str) -> tuple[int, str, Any]:
        """Status, text and headers of the answer."""
        method, target, body = request
        sent = {"Host": self.host, "Content-Type": "application/json"}
        sent |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.line.request(method, target, json.dumps(body) if method == "POST" else None, sent)
        answer = self.line.getresponse()
        text = answer.read().decode()
        self.got.setdefault(attack, Counter())[answer.status] += 1
        assert answer.status < 500 and SECRET not in text and "root:" not in text, (request, answer.status, text)
        return answer.status, text, answer.headers

    def show(self) -> None:
        """Print the table."""
        print()
        for attack, got in self.got.items():
            statuses = ", ".join(f"{count} x {status}" for status, count in sorted(got.items()))
            print(f"{attack:44} {got.total():5} requests: {statuses}")


def files(folder: Path) -> dict[str, bytes]:
    """The files in a folder, with their bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def attacker(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Attacker]:
    monkeypatch.setenv("MINIGPT_CONFIG", str(folder / "config"))
    with served(folder / "runs") as address:
        made = Attacker(address)
        yield made
        made.show()


@pytest.mark.slow
def test_no_parameter_of_any_route_becomes_a_path(attacker: Attacker, folder: Path):
    before = files(folder)
    for climb in CLIMBS:
        for request in everywhere(climb):
            status, text, _ = attacker.send(f"a path in every parameter, {len(CLIMBS)} spellings", request)
            named = request[2].get("model", request[2].get("name")) == climb if request[2] else True
            named = named and request[1] not in ("/api/presets", "/api/texts")  # there the client chooses a name
            assert status in ((400, 404) if named else (200, 400, 404)), (request, text)
    made = {name: content for name, content in files(folder).items() if name not in before}
    assert {name: content for name, content in files(folder).items() if name in before} == before
    assert all(re.fullmatch(r"config/generation\.yaml|texts/[A-Za-z0-9_-]+\.txt", name) for name in made), made.keys()


@pytest.mark.slow
def test_markup_is_only_told_as_data(attacker: Attacker):
    own = [("POST", path, body | {"model": MARKUP}) for path, body in BODIES.items() if "model" in body]
    own.append(("POST", "/v1/completions", {"model": MARKUP, "prompt": MARKUP, "echo": True, "logprobs": 9}))
    rows = {
        "markup in every parameter": everywhere(MARKUP),
        "markup as a run's name and vocabulary": [*plain(), *own, ("GET", f"/api/run?name={quote(MARKUP, '')}", None)],
    }
    told = 0
    for attack, requests in rows.items():
        for request in requests:
            _, text, headers = attacker.send(attack, request)
            assert headers["x-content-type-options"] == "nosniff"
            assert "default-src 'self'" in headers["content-security-policy"]
            assert "unsafe-inline" not in headers["content-security-policy"]
            if "<img" in text:
                told += 1
                assert headers["content-type"] == "application/json", request
    assert told > 10


def test_another_host_or_origin_gets_403_everywhere(attacker: Attacker):
    hosts = ["evil.example", "127.0.0.1.evil.example", "localhost@evil.example", "evil.example:8000"]
    origins = ["http://evil.example", "null", "http://localhost:1", "https://" + attacker.host + ".evil.example"]
    for request in plain():
        for host in hosts:
            assert attacker.send("Host of another name (DNS rebinding)", request, Host=host)[0] == 403
        for origin in origins:
            assert attacker.send("Origin of another site", request, Origin=origin)[0] == 403


def test_no_key_or_a_wrong_one_gets_401_and_stands_in_no_log(folder: Path, caplog: pytest.LogCaptureFixture):
    from minigpt.serve.api.guard import FILES, OPEN

    caplog.set_level(logging.DEBUG)
    wrong = [
        "",
        "Bearer",
        KEY,
        f"bearer {KEY}",
        f"Bearer  {KEY}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}x",
        f"Basic {KEY}",
    ]
    with served(folder / "runs", key=KEY, hosts=None) as address:
        attacker = Attacker(address)
        for request in plain():
            free = request[1] in OPEN or request[1].startswith(FILES)
            statuses = (200, 404) if free else (401,)
            assert attacker.send("no key", request)[0] in statuses
            for given in wrong:
                status, text, _ = attacker.send("a wrong key", request, Authorization=given)
                assert status in statuses and KEY not in text
        right = ("GET", "/v1/models", None)
        assert attacker.send("the right key", right, Authorization=f"Bearer {KEY}")[0] == 200
        attacker.show()
    assert not any(KEY in record.getMessage() for record in caplog.records)


def test_a_key_that_begins_right_takes_as_long_as_another():
    from minigpt.serve.api.guard import Guard

    key = "a" * (4 << 20)  # so long that we would notice a comparison that stops at the first wrong byte

    async def nobody(*_: Any) -> None:
        raise AssertionError("the key was taken")

    async def ignore(_: Any) -> None:
        return None

    def seconds(given: str) -> float:
        scope = {"type": "http", "path": "/v1/models", "headers": [(b"authorization", b"Bearer " + given.encode())]}
        begun = time.perf_counter()
        asyncio.run(Guard(nobody, None, key, 10)(scope, nobody, ignore))
        return time.perf_counter() - begun

    wrong = ("b" + key[1:], key[:-1] + "b")
    rounds = [[seconds(given) for given in wrong] for _ in range(30)]  # in turns: both meet the same busy machine
    first, last = map(min, zip(*rounds, strict=True))
    print(f"a key wrong in its first byte: {first * 1000:.2f} ms; in its last byte: {last * 1000:.2f} ms")
    assert 0.6 < first / last < 1.6
