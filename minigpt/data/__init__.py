"""Turn text into batches: sources, cleaning, splits, token files. Only `Batches` and `eval_batches` need torch."""

from typing import TYPE_CHECKING, Any

from minigpt.data.corpus import open_corpus, text_chunks
from minigpt.data.prepare import Prepared, load_prepared, prepare

if TYPE_CHECKING:
    from minigpt.data.batches import Batches, eval_batches, windows

__all__ = [
    "Batches",
    "Prepared",
    "eval_batches",
    "load_prepared",
    "open_corpus",
    "prepare",
    "text_chunks",
    "windows",
]


def __getattr__(name: str) -> Any:
    """Import torch only when batches are used, since preparing text does not need its 200 MB."""
    if name in ("Batches", "eval_batches", "windows"):
        from minigpt.data import batches

        return getattr(batches, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
