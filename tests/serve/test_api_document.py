"""Test that the API's document describes every answer to thousands of generated requests, and that none is 5xx."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from served import make_runs, served

from minigpt.serve.limits import Limits

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")
CASES = 185
"""Requests of each path and kind; 2,000 in all."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    limits = Limits(tokens=8, seconds=5)
    with served(make_runs(tmp_path_factory.mktemp("runs")), limits) as found:
        yield found


def test_the_document_names_every_status_and_no_422(address: str):
    made = httpx.get(f"{address}/openapi.json", timeout=600).json()
    for path, methods in made["paths"].items():
        for found in methods.values():
            assert "422" not in found["responses"]
            if path != "/health":
                assert {"200", "400", "401", "403", "404", "413", "429", "503"} <= found["responses"].keys()
    assert "text/event-stream" in made["paths"]["/v1/completions"]["post"]["responses"]["200"]["content"]


@pytest.mark.slow
@pytest.mark.parametrize("right", [True, False])
def test_no_made_up_request_gets_an_answer_outside_of_the_document(address: str, right: bool):
    schemathesis = pytest.importorskip("schemathesis", reason="needs the package schemathesis")
    from hypothesis import HealthCheck, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
    schema = schemathesis.openapi.from_url(f"{address}/openapi.json")
    statuses: dict[int, int] = {}
    names = ["base", "talks", "base@1"]

    for operation in (found.ok() for found in schema.get_all_operations()):
        if not right and not operation.body:  # without a body, no request can be wrong
            continue
        mode = GenerationMode.POSITIVE if right else GenerationMode.NEGATIVE

        @given(data=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=CASES, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        def check(data: Any) -> None:
            if right and isinstance(data.body, dict) and "model" in data.body:
                data.body["model"] = random.Random(len(str(data.body))).choice(names)
            answer = data.call(timeout=600)
            statuses[answer.status_code] = statuses.get(answer.status_code, 0) + 1
            data.validate_response(answer, checks=checks)

        check()
    print(f"\n{sum(statuses.values())} requests: {statuses}")
    assert not [status for status in statuses if status >= 500]


@pytest.mark.slow
def test_fuzzed_bytes_get_one_error_object_each(address: str):
    draws = random.Random(5)
    whole = b'{"model": "base", "prompt": "the cat", "max_tokens": 3, "stop": ["a"], "logit_bias": {"3": 1.5}}'
    with httpx.Client(base_url=address, timeout=600) as client:
        for number in range(1000):
            body = bytearray(whole)
            for _ in range(draws.randint(1, 6)):
                body[draws.randrange(len(body))] = draws.randrange(256)
            kind = draws.choice(["application/json", "text/plain", "", "application/json; charset=utf-16"])
            answer = client.post("/v1/completions", content=bytes(body), headers={"content-type": kind} if kind else {})
            assert answer.status_code in (200, 400, 404), (number, bytes(body), answer.text)
            assert answer.status_code == 200 or answer.json().keys() == {"error"}
