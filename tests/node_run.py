"""Find packages of npm, for tests in which they read our files: make .venv/installed-node, or MINIGPT_NODE=FOLDER."""

import os
import shutil
import sys
from pathlib import Path

import pytest

PACKAGES = Path(os.environ.get("MINIGPT_NODE", Path(sys.prefix) / "node")) / "node_modules"


def needs_node(*packages: str) -> pytest.MarkDecorator:
    """Skip a test if node or one of the packages is missing."""
    missing = [name for name in packages if not (PACKAGES / name).is_dir()]
    what = "node" if not shutil.which("node") else " and ".join(missing)
    return pytest.mark.skipif(bool(what), reason=f"{what} is not there: make .venv/installed-node")
