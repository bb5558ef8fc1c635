"""Text -> tokenizer and token files, for one config. No torch here: preparing text does not need it."""

from pathlib import Path

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.console import Report
from minigpt.data import Prepared, open_corpus, prepare, text_chunks
from minigpt.tokenizers import Tokenizer


def make_tokenizer(config: RunConfig, report: Report | None = None) -> Tokenizer:
    """The tokenizer of the config, trained on its data where it needs training.

    bpe learns from the training split; char takes its characters from all splits, so that none is unknown.
    """
    if report:
        open_corpus(config.data, report)  # fetches and surveys the text, which the next line then finds done
    split = None if config.tokenizer.kind in ("char", "auto") else "train"
    return tokenizers.build(config.tokenizer, text_chunks(config.data.source, config.data, split), report)


def prepare_data(
    config: RunConfig, tokenizer: Tokenizer, report: Report | None = None, out: Path | None = None
) -> Prepared:
    """Token files of the config's data, from the cache if they are there; or in `out`."""
    return prepare(config.data, tokenizer, tokenizers.safe_cut, out, report)
