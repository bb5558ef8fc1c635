"""Define fixtures: the data mirror, a browser, and a separate cache for every test session."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser_run import chromium
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers on two cores: spinning threads would slow each other down
os.environ.setdefault("MINIGPT_MKL", "usual")  # so that commands started by tests compute as the tests do

settings.register_profile("suite", deadline=None, derandomize=True)  # always the same cases, also on a busy machine
settings.load_profile("suite")

LONG = ("test_notebooks", "test_storm", "test_resume_kills", "test_recipes_train", "test_elastic")
"""Files that take minutes. They start first, so that all processes end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long files first; `make test-all` keeps this order."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture
def mirror() -> Path:
    """The local mirror of public data, or a skip that says why."""
    folder = os.environ.get("MINIGPT_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the data mirror: set MINIGPT_DATA=DIR")
    return Path(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for all tests of a file."""
    yield from chromium()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep everything that a test prepares out of the user's cache."""
    os.environ["MINIGPT_CACHE"] = str(tmp_path_factory.getbasetemp() / "cache")
