"""Turn text into token ids and back. `build` makes a tokenizer, `load` reads one from a file."""

import logging
from collections.abc import Iterable

from minigpt.config import TokenizerConfig
from minigpt.download import Progress
from minigpt.errors import TokenizerError
from minigpt.tokenizers.base import BOS, EOS, PAD, UNK, Tokenizer
from minigpt.tokenizers.bpe import BPETokenizer
from minigpt.tokenizers.gpt2 import gpt2_tokenizer
from minigpt.tokenizers.load import load
from minigpt.tokenizers.patterns import safe_cut
from minigpt.tokenizers.simple import ByteTokenizer, CharTokenizer
from minigpt.tokenizers.utf8_stream import TextStream
from minigpt.tokenizers.words import WordTokenizer

log = logging.getLogger(__name__)


def build(config: TokenizerConfig, texts: Iterable[str], progress: Progress | None = None) -> Tokenizer:
    """The tokenizer that a config asks for.

    Args:
        config: if `path` is set, that file is loaded and the other fields are ignored.
        texts: chunks of one text, of any size (for word, no chunk may end inside a word); read at most once, and only
            for char, bpe and word.
        progress: called with (what, how much is done, of how much) while bpe and word learn.

    Raises:
        TokenizerError: the tokenizer cannot be loaded, learned or downloaded.
    """
    if config.path:
        return load(config.path)
    if config.kind == "byte":
        return ByteTokenizer()
    if config.kind in ("gpt2", "auto"):
        try:
            return gpt2_tokenizer()
        except TokenizerError as error:
            if config.kind == "gpt2":
                raise
            log.warning("tokenizer auto: using char instead of gpt2, since %s", error)
    if config.kind == "bpe":
        return BPETokenizer.train(texts, config.vocab_size, config.pattern, config.max_train_bytes, progress=progress)
    if config.kind == "word":
        return WordTokenizer.from_texts(texts, config.vocab_size, progress)
    return CharTokenizer.from_texts(texts, config.unknown)


__all__ = [
    "BOS",
    "EOS",
    "PAD",
    "UNK",
    "BPETokenizer",
    "ByteTokenizer",
    "CharTokenizer",
    "TextStream",
    "Tokenizer",
    "WordTokenizer",
    "build",
    "gpt2_tokenizer",
    "load",
    "safe_cut",
]
