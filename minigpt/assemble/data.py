"""Text -> tokenizer and token files, for one config."""

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.data import Prepared, prepare, text_chunks
from minigpt.tokenizers import Tokenizer


def make_tokenizer(config: RunConfig) -> Tokenizer:
    """The tokenizer of the config, trained on its data where it needs training.

    bpe learns from the training split; char takes its characters from all splits, so that none is unknown.
    """
    split = None if config.tokenizer.kind in ("char", "auto") else "train"
    return tokenizers.build(config.tokenizer, text_chunks(config.data.source, config.data, split))


def prepare_data(config: RunConfig, tokenizer: Tokenizer) -> Prepared:
    """Token files of the config's data, from the cache if they are there."""
    return prepare(config.data, tokenizer, tokenizers.safe_cut)
