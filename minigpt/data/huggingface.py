"""Read Hugging Face datasets (hf:NAME[/CONFIG]) with the `datasets` library, an extra that downloads and caches them.

NAME is OWNER/DATASET or DATASET as on the hub. A third part is the configuration: hf:Salesforce/wikitext/wikitext-2-v1.
Each row is a document. The split "validation" becomes our val.
"""

import importlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

from minigpt.data.json_rows import text_of
from minigpt.data.text_files import Blocks
from minigpt.errors import DataError

_SPLITS = {"train": "train", "validation": "val", "valid": "val", "dev": "val", "test": "test"}


def load(name: str, field: str) -> tuple[Any, dict[str, Callable[[], Iterator[Blocks]]]]:
    """Return (identity, readers by split). Raises DataError: no extra, no such dataset, no such field, no network."""
    loaded = load_splits(name)
    known = {_SPLITS[split]: rows for split, rows in loaded.items() if split in _SPLITS}
    if "train" not in known:
        raise DataError(f"hf:{name}: has no train split, but {', '.join(loaded)}; choose another dataset or CONFIG")
    for rows in known.values():
        if field not in rows.column_names:
            names = ", ".join(rows.column_names)
            raise DataError(f"hf:{name}: has no field {field!r}, but {names}; name one with --data.text-field")
    version = {split: [len(rows), str(getattr(rows, "_fingerprint", ""))] for split, rows in known.items()}
    parts = {split: partial(_read, rows, field, f"hf:{name}") for split, rows in known.items()}
    return ["hf", name, field, version], parts


@lru_cache(maxsize=4)
def load_splits(name: str) -> Any:
    """Load the splits of a dataset, once per process, since each load asks the hub."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise DataError(f"hf:{name}: needs the datasets library; pip install 'minigpt[hf]'") from None
    *repository, configuration = name.split("/") if name.count("/") > 1 else (name, None)
    try:
        return datasets.load_dataset("/".join(repository), configuration)
    except Exception as error:  # noqa: BLE001  the library raises anything from OSError to requests' own
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(f"hf:{name}: cannot be loaded ({reason}); check the name, and the network") from None


def _read(rows: Any, field: str, label: str) -> Iterator[Blocks]:
    for number, row in enumerate(rows.select_columns([field])):
        text = text_of(row, field, f"{label} row {number:,}")
        if text:
            yield iter((text,))
