"""Keep the receipt of a run: the versions, the hardware and the data that it was trained with."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from minigpt.config import RunConfig
from minigpt.errors import RunError
from minigpt.files import parse_json
from minigpt.layout import RunFolder


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt of the run at `path`; {} if it has none. Raises RunError if it is damaged."""
    file = RunFolder(path).receipt
    try:
        receipt = parse_json(file.read_bytes()) if file.is_file() else {}
        parts = [receipt["data"]["sha256"], receipt.get("versions", {})] if receipt else []
        if not all(isinstance(part, dict) for part in parts):
            raise TypeError
        return dict(receipt)
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = error if isinstance(error, OSError | ValueError) else "not a receipt"
        raise RunError(f"{file}: damaged ({why}); delete it to continue without the comparison") from None


def text_has_changed(path: Path, sha256: Mapping[str, str]) -> bool:
    """Whether the sha256 of a split is not the one in the run's receipt; False without one. Raises RunError."""
    receipt = read_receipt(path)
    return bool(receipt) and receipt["data"]["sha256"] != sha256


def make_receipt(
    config: RunConfig, sha256: Mapping[str, str], machine: dict[str, Any], versions: dict[str, str]
) -> dict[str, Any]:
    """Versions, hardware, seed, sha256 of the data, and the command (the command line writes its own there)."""
    return {
        "command": "minigpt.train(...), called from Python",
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {"machine": platform.machine(), "system": platform.platform(), **machine},
        "seed": config.train.seed,
        "data": {"source": config.data.source, "sha256": dict(sha256)},
    }
