"""What was measured of this machine: kept in tuning.json in the cache directory, under a key of all it depends on.

A file that is damaged or has another form is as good as none: what stood in it is measured again.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from minigpt.download import cache_root
from minigpt.files import parse_json, write_bytes


def recall(key: str) -> Any:
    """What was kept under the key; None if nothing was. Whoever asks checks its form."""
    return _read(_store()).get(key)


def keep(key: str, value: Any) -> None:
    """Remember a value (JSON); a cache that cannot be written is one warning."""
    store = _store()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(store, (json.dumps(_read(store) | {key: value}, indent=1) + "\n").encode())
    except OSError as error:  # a read-only cache costs a second at each start, no more
        warnings.warn(f"timings are not remembered: {store}: {error.strerror}", stacklevel=2)


def _store() -> Path:
    return cache_root() / "tuning.json"


def _read(store: Path) -> dict[str, Any]:
    try:
        return dict(parse_json(store.read_bytes()))
    except (OSError, ValueError, TypeError):  # none yet, or damaged: measure again
        return {}
