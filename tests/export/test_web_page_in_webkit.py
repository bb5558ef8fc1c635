"""Test the web page of a run in WebKit (Safari's engine), driven over WebDriver: it writes what generate writes.

On Debian, install what it needs: apt-get install webkit2gtk-driver xvfb.
"""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from page_run import make_run

from minigpt import export_page, load_run
from minigpt.export.page.pack import rounded
from minigpt.generation.text import complete

BROWSER = next(Path("/usr/lib").glob("*/webkit2gtk-4.*/MiniBrowser"), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None or not shutil.which("WebKitWebDriver") or not shutil.which("xvfb-run"),
        reason="needs apt-get install webkit2gtk-driver xvfb",
    ),
]
Run = Callable[..., Any]
"""(script, arguments) -> what the script returns in the page."""

WRITE = """
const [prompt, tokens, temperature, seed] = arguments;
document.querySelector("#tab-write").click();
for (const [id, value] of Object.entries({prompt, max_new_tokens: tokens, temperature, seed})) {
    const field = document.getElementById(id);
    field.value = value;
    field.dispatchEvent(new Event("input", {bubbles: true}));
    field.dispatchEvent(new Event("change", {bubbles: true}));
}
document.querySelector("#write").click();
"""


@pytest.fixture(scope="module")
def opened() -> Iterator[Callable[[Path], Run]]:
    """Open a file, and return a function that runs scripts in it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    look = {"WEBKIT_DISABLE_SANDBOX_THIS_IS_DANGEROUS": "1", "WEBKIT_DISABLE_COMPOSITING_MODE": "1"}  # for root
    driver = subprocess.Popen(
        ["xvfb-run", "-a", "WebKitWebDriver", f"--port={port}", "--host=127.0.0.1"],
        env=os.environ | look, start_new_session=True,
    )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:

        def ask(path: str, **body: Any) -> Any:
            answer = client.post(path, json=body)
            assert answer.is_success, answer.text
            return answer.json()["value"]

        wait(lambda: driver.poll() is None and answers(client))
        options = {"webkitgtk:browserOptions": {"binary": str(BROWSER), "args": ["--automation"]}}
        session = f"/session/{ask('/session', capabilities={'alwaysMatch': options})['sessionId']}"

        def run(script: str, *arguments: Any) -> Any:
            return ask(f"{session}/execute/sync", script=script, args=list(arguments))

        def open_(file: Path) -> Run:
            ask(f"{session}/url", url=file.as_uri())
            wait(lambda: run("return document.documentElement.dataset.ready !== undefined"))
            return run

        yield open_
        client.delete(session)
    os.killpg(driver.pid, 15)
    driver.wait(30)


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/status").is_success
    except httpx.TransportError:
        return False


def wait(done: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize(("shape", "kind"), [("gpt2", "byte"), ("modern", "char"), ("modern", "bpe"), ("gpt2", "bpe")])
def test_it_writes_what_generate_writes(opened, shape: str, kind: str, precision: str, tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path / "my", shape, kind), "cpu")
    page = opened(export_page(run, precision=precision).path)
    assert "AppleWebKit" in page("return navigator.userAgent") and "Chrome" not in page("return navigator.userAgent")
    count = 200 if precision == "fp32" else 50
    for temperature, seed in ((0.0, 0), (0.8, 5)):
        page(WRITE, "The cat", count, temperature, seed)
        wait(lambda: page("return !document.querySelector('#more').hidden"))
        settings: Any = {"max_new_tokens": count, "temperature": temperature, "seed": seed}
        expected = complete(rounded(run.model, precision), ["The cat"], run.tokenizer, **settings)[0][0]
        assert page("return document.querySelector('#written').textContent") == expected.text
