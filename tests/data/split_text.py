"""Write documents, and give those of a split and the folders of prepared ones, for the tests of data."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from minigpt.config import DataConfig
from minigpt.data import open_corpus


def jsonl(path: Path, texts: Sequence[str]) -> DataConfig:
    """Documents in a file."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return DataConfig(source=str(path))


def cached(config: DataConfig) -> list[Path]:
    """The folders of prepared texts."""
    return sorted(Path(config.cache_dir or os.environ["MINIGPT_CACHE"]).glob("prepared/*"))


def split_of(config: DataConfig, split: str | None) -> list[str]:
    """Each document's text, put together from its pieces."""
    texts = [""]
    for piece in open_corpus(config).pieces(split):
        texts[-1] += piece.text
        if piece.ends:
            texts.append("")
    assert texts.pop() == "", "the last piece ends its document"
    return texts
