"""Test the guard against attacks: foreign Host and Origin, keys, paths in names, endless bodies."""

import http.client
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import make_runs, served

from minigpt.errors import UserError
from minigpt.serve.limits import Limits

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")
KEY = "sesame-42"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[Any]:
    with served(runs, Limits(body=10_000)) as address, httpx.Client(base_url=address) as made:
        yield made


@pytest.fixture(scope="module")
def locked(runs: Path) -> Iterator[Any]:
    with served(runs, key=KEY, hosts=None) as address, httpx.Client(base_url=address) as made:
        yield made


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:8000"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Host": "x", "X-Forwarded-Host": "localhost"}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:1"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://["}, 403),
        ({"Host": "localhost:1", "Origin": "http://localhost:2"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_only_this_servers_own_pages_may_ask(client: Any, headers: dict[str, str], status: int):
    answer = client.get("/v1/models", headers=headers)
    assert answer.status_code == status
    assert "access-control-allow-origin" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff" and "content-security-policy" in answer.headers


def test_a_link_of_another_site_may_lead_to_the_page(client: Any):
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}).status_code == 200


def test_a_wrong_host_is_told_how_to_allow_it(client: Any):
    answer = client.get("/v1/models", headers={"Host": "my.name:8000"})
    assert answer.status_code == 403 and "not called 'my.name'; start it with --allow-host" in answer.text


@pytest.mark.parametrize(
    "sent",
    ["", "Bearer", f"bearer {KEY}", KEY, f"Bearer  {KEY}", "Bearer " + "é" * 9, f"Bearer {KEY[:-1]}", "x"],
)
def test_a_wrong_key_gets_401_and_stands_in_no_log(locked: Any, sent: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    answer = locked.get("/v1/models", headers={"Authorization": sent.encode("utf-8")} if sent else {})
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert KEY not in answer.text and not any("uvicorn" in r.name and KEY in r.getMessage() for r in caplog.records)


def test_the_right_key_opens_and_health_needs_none(locked: Any):
    assert locked.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200
    assert locked.get("/health").status_code == 200
    assert locked.get("/v1/models", headers={"Host": "a.name.of.mine", "Authorization": f"Bearer {KEY}"}).is_success
    assert locked.get("/docs").status_code == locked.get("/openapi.json").status_code == 401


PLACES = [
    "../base",
    "base/../base",
    "/etc/passwd",
    "..%2fbase",
    "base/checkpoints/step-00000001",
    ".",
    "",
    "base\0",
    "C:\\",
]


@pytest.mark.parametrize("place", PLACES)
def test_no_name_becomes_a_path(client: Any, place: str):
    asked: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "a"},
        "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
        "/v1/embeddings": {"input": "a"},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [1]},
    }
    for path, fields in asked.items():
        answer = client.post(path, json={"model": place, **fields})
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")


def test_a_path_that_climbs_is_not_found(client: Any):
    for path in ("/v1/models/../../etc/passwd", "/v1/models/..%2f..%2fbase%2fconfig.yaml", "/%2e%2e/%2e%2e/etc/passwd"):
        asked = http.client.HTTPConnection(client.base_url.host, client.base_url.port)
        asked.request("GET", path)  # http.client does not change the path, httpx would
        assert asked.getresponse().status == 404


def test_a_body_without_end_is_cut_off(client: Any):
    def endless() -> Iterator[bytes]:
        for _ in range(2000):
            yield b"a" * 5000
        raise AssertionError("the server read 10 MB")

    try:
        answer = client.post("/v1/completions", content=endless())
    except httpx.TransportError:  # the server closed the connection before the request was complete
        return
    assert answer.status_code == 413


def test_markup_in_a_name_stays_text(client: Any):
    answer = client.get("/v1/models/<script>alert(1)<script>")
    assert answer.status_code == 404 and answer.headers["content-type"] == "application/json"
    assert "<script>" not in client.get("/docs").text


def test_what_is_missing_is_one_clear_line():
    from minigpt.cli.serve import check_installed

    with pytest.raises(UserError, match=r"needs no_such_package; install with: pip install 'minigpt\[serve\]'"):
        check_installed(("http", "no_such_package"))
