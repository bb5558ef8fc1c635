"""Store measurements of this machine in tuning.json in the cache directory. The key names all that they depend on.

A damaged file is ignored, and its values are measured again.
"""

import json
import warnings
from pathlib import Path
from typing import Any

from minigpt.download import cache_root
from minigpt.files import json_object, write_bytes


def recall(key: str) -> Any:
    """The value stored under the key, or None. The caller must check its form."""
    return json_object(_store()).get(key)


def keep(key: str, value: Any) -> None:
    """Store a value (JSON) under a key. Warns if the cache cannot be written."""
    store = _store()
    try:
        store.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(store, (json.dumps(json_object(store) | {key: value}, indent=1) + "\n").encode())
    except OSError as error:  # a read-only cache only costs a second at each start
        warnings.warn(f"timings are not stored: {store}: {error.strerror}", stacklevel=2)


def _store() -> Path:
    return cache_root() / "tuning.json"
