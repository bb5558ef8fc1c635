"""Start Chromium for tests of pages, with everything switched off that would use the network, and watch its pages."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
WAIT = 60_000
"""Milliseconds for something to appear on a page; the other tests may need both cores for seconds."""
IN_CHROMIUM = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt install chromium"),
]


def chromium() -> Iterator[Any]:
    """The browser; it is closed after the yield."""
    driver = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    with driver.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield opened
        opened.close()


def watched(page: Any) -> tuple[list[str], list[str]]:
    """What goes wrong in a page, and the addresses that it asks for, as they happen."""
    wrong, asked = [], []
    page.on("console", lambda message: wrong.append(message.text))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: asked.append(request.url))
    return wrong, asked


@contextmanager
def opened_file(browser: Any, file: Path, **look: Any) -> Iterator[Any]:
    """Open a page offline; at the end check that there was no error and no request except for the file."""
    look = {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"} | look
    context = browser.new_context(offline=True, **look)
    try:
        page = context.new_page()
        page.set_default_timeout(WAIT)
        wrong, asked = watched(page)
        page.goto(file.as_uri())
        yield page
    finally:
        context.close()
    assert wrong == []
    assert [url for url in asked if not url.startswith("blob:")] == [file.as_uri()]
