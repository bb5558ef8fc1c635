"""Test 200 streams at once, half of whose clients leave: every answer is right, and no text stays queued."""

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from served import PROMPT, make_runs, served

from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.generation.text import generate_text
from minigpt.runs.load import load_run
from minigpt.serve.limits import Limits

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")
STREAMS, TOKENS = 200, 100


def resident() -> int:
    """Bytes of memory of this process, which includes the server; 0 if the system does not say."""
    file = Path("/proc/self/statm")
    return int(file.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if file.is_file() else 0


async def write(client: Any, number: int, leaves: bool, found: dict[int, str], first: list[float]) -> None:
    """One client: send its request, and read the answer."""
    asked = {"model": "base", "prompt": PROMPT[: 1 + number % 20], "max_tokens": TOKENS, "seed": number, "stream": True}
    asked |= {"temperature": 0} if number % 2 else {"temperature": 0.9, "top_k": 20}
    begun, text = time.monotonic(), ""
    async with client.stream("POST", "/v1/completions", json=asked) as answer:
        assert answer.status_code == 200
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                first += [time.monotonic() - begun] if not text else []
                text += json.loads(line.removeprefix("data: "))["choices"][0]["text"]
                if leaves and len(text) > 20:
                    return
    found[number] = text


async def storm(address: str) -> tuple[dict[int, str], list[float], list[float]]:
    """Run all clients: the answers of those that stayed, times to the first token, times of /health."""
    found: dict[int, str] = {}
    first: list[float] = []
    well: list[float] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=address, timeout=120, limits=limits) as client:
        tasks = [asyncio.ensure_future(write(client, i, i % 4 > 1, found, first)) for i in range(STREAMS)]
        while not all(task.done() for task in tasks):
            begun = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            well.append(time.monotonic() - begun)
            await asyncio.sleep(0.2)
        await asyncio.gather(*tasks)
    return found, first, well


def figures(address: str) -> dict[str, float]:
    """The figures of /metrics."""
    rows = (line.rpartition(" ") for line in httpx.get(f"{address}/metrics").text.splitlines())
    return {name: float(value) for name, _, value in rows if name.startswith("minigpt")}


@pytest.mark.slow
def test_two_hundred_streams_are_each_what_they_are_alone(tmp_path: Path):
    runs = make_runs(tmp_path)
    with served(runs, Limits(texts=STREAMS), metrics=True) as address:
        begun = time.monotonic()
        found, first, well = asyncio.run(storm(address))
        seconds, memory = time.monotonic() - begun, resident()
        asyncio.run(storm(address))
        end = time.monotonic() + 60  # the server hears a moment later that a client left
        while (counted := figures(address))["minigpt_texts_writing"] or counted["minigpt_texts_waiting"]:
            assert time.monotonic() < end, counted
            time.sleep(0.02)
        grown = resident() - memory
    model, tokenizer = (run := load_run(runs / "base", "cpu")).model, run.tokenizer
    prepare_decoding(model, "fp32")
    for number, text in found.items():
        how: dict[str, Any] = {"temperature": 0} if number % 2 else {"temperature": 0.9, "top_k": 20}
        prompt = PROMPT[: 1 + number % 20]
        assert text == generate_text(model, prompt, tokenizer, max_new_tokens=TOKENS, seed=number, **how), number
    assert len(found) >= STREAMS // 2
    assert grown < 100e6
    ordered = sorted(first)
    print(
        f"\n{STREAMS} streams in {seconds:.1f} s; first token p50 {ordered[len(ordered) // 2]:.2f} s, "
        f"p99 {ordered[int(len(ordered) * 0.99)]:.2f} s; /health {max(well):.3f} s at most; "
        f"memory grew {grown / 1e6:.0f} MB"
    )
