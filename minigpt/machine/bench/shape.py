"""Choose the vocabulary size for a benchmark of a recipe, without reading a text."""

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.tokenizers.words import WIKITEXT_2

CHARACTERS = 65
"""Number of ids of the char tokenizer on Tiny Shakespeare. In general it is the number of different characters."""
GPT2 = 50257


def vocabulary(config: RunConfig) -> int:
    """model.vocab_size, or the size of the recipe's tokenizer. Raises TokenizerError for a bad tokenizer.path."""
    if config.model.vocab_size is not None:
        return config.model.vocab_size
    if config.tokenizer.path:
        return tokenizers.load(config.tokenizer.path).vocab_size
    kind = config.tokenizer.kind
    if kind == "byte":
        return tokenizers.ByteTokenizer().vocab_size
    ids = config.tokenizer.vocab_size
    return {"char": CHARACTERS, "bpe": ids, "word": min(ids, WIKITEXT_2)}.get(kind, GPT2)


def with_vocabulary(config: RunConfig) -> RunConfig:
    """The config with model.vocab_size set."""
    return config.changed(model={"vocab_size": vocabulary(config)})
