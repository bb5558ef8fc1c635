"""Share one small finished run between the tests of the commands."""

import shutil
from pathlib import Path

import pytest
from cli_run import small_run


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 40 steps; tests copy it before they break it."""
    return small_run(tmp_path_factory.mktemp("trained"))


@pytest.fixture
def broken(trained: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    shutil.copytree(trained, tmp_path / "broken")
    return tmp_path / "broken"
