"""Keep the receipt of a run: the versions, the hardware and the data that it was trained with."""

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from minigpt.config import RunConfig
from minigpt.errors import RunError
from minigpt.files import parse_json
from minigpt.layout import RunFolder


class _Hashes(BaseModel):
    sha256: dict[str, str]


class _Asked(BaseModel):
    settings: dict[str, Any] = {}


class _Budget(BaseModel):
    asked: _Asked = _Asked()


class _Receipt(BaseModel):
    """The types of the fields that are used; the others are only shown."""

    data: _Hashes
    versions: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    base: dict[str, str] = {}
    teacher: dict[str, str] = {}
    budget: _Budget = _Budget()
    merged: str | None = None


def read_receipt(path: Path) -> dict[str, Any]:
    """The receipt of the run at `path`; {} if it has none. Raises RunError if it is damaged."""
    file = RunFolder(path).receipt
    try:
        receipt = dict(parse_json(file.read_bytes())) if file.is_file() else {}
        if receipt:
            _Receipt.model_validate(receipt)
        return receipt
    except ValidationError as error:
        why = f"{'.'.join(map(str, error.errors()[0]['loc']))} is missing or wrong"
    except (OSError, ValueError, TypeError) as error:
        why = "not a receipt" if isinstance(error, TypeError) else str(error)
    raise RunError(f"{file}: damaged ({why}); delete it to continue without the comparison")


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
