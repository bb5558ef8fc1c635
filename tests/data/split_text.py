"""Give the documents of a split, for the tests of sources and splits."""

from minigpt.config import DataConfig
from minigpt.data import open_corpus


def split_of(config: DataConfig, split: str | None) -> list[str]:
    """Each document's text, put together from its pieces."""
    texts = [""]
    for piece in open_corpus(config).pieces(split):
        texts[-1] += piece.text
        if piece.ends:
            texts.append("")
    assert texts.pop() == "", "the last piece ends its document"
    return texts
