"""Turn a config's text into a tokenizer and token files. No torch here: preparing text does not need it."""

from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import numpy as np

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.console import Report
from minigpt.data import Prepared, open_corpus, prepare, text_chunks
from minigpt.data.counts import blocks
from minigpt.errors import DataError
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.base import listed

MOST_UNKNOWN = {"character": 0.1, "word": 0.5}
"""Largest share of a text that the tokenizer may not know, by its unit. Many words of a small text occur only once."""


def make_tokenizer(config: RunConfig, report: Report | None = None) -> Tokenizer:
    """The tokenizer of the config, trained on its data if its kind needs training.

    bpe and word learn from the training split; char takes its characters from all splits, so that none is unknown.
    """
    if report:
        open_corpus(config.data, report)  # downloads and surveys the text; the next line then uses the result
    split = None if config.tokenizer.kind in ("char", "auto") else "train"
    return tokenizers.build(config.tokenizer, text_chunks(config.data.source, config.data, split), report)


def prepare_data(
    config: RunConfig, tokenizer: Tokenizer, report: Report | None = None, out: Path | None = None
) -> Prepared:
    """Token files of the config's data, from the cache if they are there; or written into `out`."""
    return prepare(config.data, tokenizer, tokenizer.safe_cut, out, report)


def check_known(config: RunConfig, tokenizer: Tokenizer, prepared: Prepared, splits: Iterable[str]) -> str:
    """A message about units of these splits that the tokenizer does not know; "" if there are none.

    Raises DataError if they are more than MOST_UNKNOWN of a split.
    """
    if tokenizer.unk_id is None:
        return ""
    ids = {split: prepared.splits[split].tokens for split in splits}
    counts = {split: count_unknown([tokens], tokenizer) for split, tokens in ids.items()}
    for split in filter(counts.get, counts):
        texts = text_chunks(config.data.source, config.data, split) if tokenizer.unit == "word" else ()
        counts[split] -= sum(map(tokenizer.spelled_unknown, texts))
    worst = max(ids, key=lambda split: counts[split] / max(1, len(ids[split])))
    if not counts[worst]:
        return ""
    name = {"train": "training", "val": "validation"}.get(worst, worst)
    chunks = text_chunks(config.data.source, config.data, worst)
    return tell_unknown(config.data.source, counts[worst], len(ids[worst]), f"{name} tokens", chunks, tokenizer)


def count_unknown(rows: Iterable[np.ndarray], tokenizer: Tokenizer) -> int:
    """How many ids of the rows stand for a unit that the tokenizer does not know."""
    return sum(int((block == tokenizer.unk_id).sum()) for row in rows for block in blocks(row))


def tell_unknown(
    source: str,
    unknown: int,
    total: int,
    what: str,
    texts: Iterable[str],
    tokenizer: Tokenizer,
    effect: str = "the model predicts that one of them comes, not which, so bits per byte looks better than it is",
) -> str:
    """The line about unknown ids, with examples from the texts; `what` names the ids, "validation tokens".

    Raises DataError if they are too many.
    """
    found: list[str] = []
    for text in texts:
        found = list(dict.fromkeys(chain(found, tokenizer.unknown_parts(text))))
        if len(found) > 8:
            break
    percent = 100 * unknown / total
    share = f"{unknown:,} of {total:,} {what} ({percent:{'.0f' if percent >= 10 else '.2g'}} %)"
    message = f"{source}: {share} are {tokenizer.unit}s that the tokenizer does not know: {listed(found, 8)}"
    if unknown > MOST_UNKNOWN[tokenizer.unit] * total:
        clean = " (--data.clean ascii drops all beyond ASCII)" if tokenizer.unit == "character" else ""
        raise DataError(
            f"{message}; give a text of the model's own {tokenizer.unit}s{clean}, or take a model whose tokenizer "
            "knows all: byte, bpe or gpt2"
        )
    return f"{message}; {effect}"
