"""Load `minigpt serve` with many clients: measure its speed, check its answers, and watch its memory.

    python benchmarks/serve_load.py                             # trains the demo's model for a few steps first
    python benchmarks/serve_load.py runs/demo --clients 200 --seconds 60

Each question is first asked alone: this gives the speed of one client, and the right answer. Then all clients ask again
and again, and every second one closes the connection in the middle of its answer. Server and clients share the cores.
"""

import argparse
import asyncio
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from minigpt.config import find_recipe, load_config
from minigpt.runs.train import train

TOKENS, QUESTIONS = 160, 40
PROMPTS = ("Once upon a time", "The", "One day a small fox", "There was a")


@dataclass
class Heard:
    """What the clients received."""

    first: list[float] = field(default_factory=list)
    """Seconds to the first token."""
    right: int = 0
    wrong: int = 0
    left: int = 0


def few_steps(folder: Path) -> Path:
    """A run of the demo's shape, trained for a few steps."""
    settings = {"train.max_steps": 20, "logging.runs_dir": str(folder), "logging.plots": False}
    return train(load_config(find_recipe("demo"), settings), name="demo", quiet=True).path


def question(number: int) -> dict[str, Any]:
    """A question; every second one is greedy."""
    how = {"temperature": 0} if number % 2 else {"temperature": 0.9, "top_k": 20}
    prompt = PROMPTS[number % len(PROMPTS)]
    return {"prompt": prompt, "max_tokens": TOKENS, "seed": number, "stream": True, **how}


async def ask(port: int, asked: dict[str, Any], leave: int = sys.maxsize) -> tuple[str, float]:
    """Ask; returns the answer, or its first `leave` pieces, and the seconds to the first token."""
    begun, body, text, first = time.perf_counter(), json.dumps(asked).encode(), "", 0.0
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
    writer.write(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise SystemExit(f"the server answered {status.decode().strip()}")
    async for line in reader:  # lines of chunked encoding begin differently
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - begun
            text += json.loads(line[6:])["choices"][0]["text"]
            leave -= 1
            if not leave:
                break
    writer.close()
    return text, first


async def client(port: int, number: int, model: str, until: float, right: list[str], heard: Heard) -> None:
    """Ask until the time is over; every second client leaves in the middle of each answer."""
    draws = random.Random(number)
    while time.perf_counter() < until:
        which = draws.randrange(QUESTIONS)
        leaves = number % 2 == 1
        leave = draws.randint(1, TOKENS // 2) if leaves else sys.maxsize
        text, first = await ask(port, {"model": model, **question(which)}, leave)
        heard.first.append(first)
        heard.left += leaves
        heard.right += not leaves and text == right[which]
        heard.wrong += not right[which].startswith(text) if leaves else text != right[which]


async def watch(port: int, process: int, until: float) -> tuple[float, float]:
    """The slowest answer of /health, and the largest memory, until the time is over."""
    slowest, most = 0.0, 0.0
    while time.perf_counter() < until:
        begun = time.perf_counter()
        await asyncio.to_thread(read, port, "health")
        slowest, most = max(slowest, time.perf_counter() - begun), max(most, memory(process))
        await asyncio.sleep(0.2)
    return slowest, most


def read(port: int, path: str) -> str:
    """The answer of a path."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=60) as answer:
        return answer.read().decode()


def counted(port: int, name: str) -> float:
    """A counter of /metrics."""
    return sum(float(line.split()[-1]) for line in read(port, "metrics").splitlines() if line.startswith(name))


def memory(process: int) -> float:
    """Megabytes that a process has in memory."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def alone(port: int, model: str) -> tuple[list[str], list[float]]:
    """Ask each question, one after another; returns the answers and the seconds to the first token."""
    found = [await ask(port, {"model": model, **question(number)}) for number in range(QUESTIONS)]
    return [text for text, _ in found], [first for _, first in found]


async def measure(port: int, process: int, model: str, clients: int, seconds: float) -> None:
    """Ask alone, then all together, and print."""
    await ask(port, {"model": model, **question(0)})  # prepares what is done at first use
    written, begun = counted(port, 'minigpt_tokens_total{kind="written"}'), time.perf_counter()
    right, first = await alone(port, model)
    single = (counted(port, 'minigpt_tokens_total{kind="written"}') - written) / (time.perf_counter() - begun)
    before = memory(process)
    print(f"one at a time: {single:,.0f} tokens/s; first token p50 {part(first, 0.5)}, p99 {part(first, 0.99)}")

    heard, begun = Heard(), time.perf_counter()
    written, until = counted(port, 'minigpt_tokens_total{kind="written"}'), begun + seconds
    watching = asyncio.ensure_future(watch(port, process, until))
    await asyncio.gather(*(client(port, number, model, until, right, heard) for number in range(clients)))
    slowest, most = await watching
    total = (counted(port, 'minigpt_tokens_total{kind="written"}') - written) / (time.perf_counter() - begun)
    while counted(port, "minigpt_texts_writing") or counted(port, "minigpt_texts_waiting"):
        await asyncio.sleep(0.1)
    print(
        f"{clients} at once: {total:,.0f} tokens/s in all ({total / single:.1f} times); first token p50 "
        f"{part(heard.first, 0.5)}, p99 {part(heard.first, 0.99)}; /health {slowest:.3f} s at most\n"
        f"answers: {heard.right} equal those to one client, {heard.wrong} differ; {heard.left} clients left early\n"
        f"memory of the server: {before:.0f} MB before, {most:.0f} at most, {memory(process):.0f} after"
    )


def part(times: list[float], share: float) -> str:
    """A quantile of times."""
    return f"{sorted(times)[int(share * (len(times) - 1))]:.3f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="?")
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = Path(args.run) if args.run else few_steps(Path(folder))
        words = [sys.executable, "-m", "minigpt", "serve", str(run), "--port", "0", "--metrics", "--device", "cpu"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as server:
            assert server.stderr is not None
            said = ""
            while not (found := re.search(r":(\d+)/v1", said)) or f"loaded {run.resolve().name}" not in said:
                if not (line := server.stderr.readline()):
                    raise SystemExit(said)
                said += line
            asyncio.run(measure(int(found[1]), server.pid, run.resolve().name, args.clients, args.seconds))
            server.terminate()


if __name__ == "__main__":
    main()
