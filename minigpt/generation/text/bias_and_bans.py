"""Turn settings that are written as text (logit_bias, bad_words) into rules on the tokenizer's ids."""

from minigpt.config import GenerationConfig
from minigpt.console import counted
from minigpt.errors import GenerationError, TokenizerError
from minigpt.generation.sampling import NO_RULES, Rules
from minigpt.tokenizers import Tokenizer


def make_rules(config: GenerationConfig, tokenizer: Tokenizer) -> Rules:
    """Make the rules of logit_bias, bad_words and min_new_tokens for this tokenizer.

    Raises:
        GenerationError: a text in logit_bias is not exactly one token or is unknown, or an id does not exist.
        TokenizerError: the tokenizer cannot encode a text.
    """
    if not (config.logit_bias or config.bad_words or config.min_new_tokens):
        return NO_RULES
    bias = {_token(text, tokenizer): value for text, value in config.logit_bias.items()}
    # A word that the tokenizer does not have is never generated. Banning it must not ban the token unk.
    known = (word for word in config.bad_words if not _unknown(word, tokenizer))
    banned = {spelling for word in known for spelling in _spellings(word, tokenizer) if spelling}
    return Rules(tokenizer.eos_id, bias, tuple(sorted(banned)))


def _token(text: str, tokenizer: Tokenizer) -> int:
    """The id that `text` means: "#13" is id 13; any other text must be one token."""
    if text[:1] == "#" and text[1:].isdecimal():
        if int(text[1:]) >= tokenizer.vocab_size:
            raise GenerationError(f"logit_bias: {text} is not an id; the tokenizer has {tokenizer.vocab_size}")
        return int(text[1:])
    special = text in tokenizer.special_tokens
    ids = [tokenizer.special_tokens[text]] if special else tokenizer.encode_next(text).tolist()
    if len(ids) != 1:
        parts = " ".join(f"#{id_}" for id_ in ids)
        raise GenerationError(f"logit_bias: {text!r} is {counted(len(ids), 'token')} ({parts}); bias them one by one")
    if not special and _unknown(text, tokenizer):
        raise GenerationError(f"logit_bias: {text!r} is not in the tokenizer's vocabulary; leave it out")
    return ids[0]


def _unknown(text: str, tokenizer: Tokenizer) -> bool:
    """Whether the text has units that the tokenizer does not have. U+FFFD is allowed: it means the token unk."""
    return any(part != "\ufffd" for part in tokenizer.unknown_parts(text))


def _spellings(word: str, tokenizer: Tokenizer) -> set[tuple[int, ...]]:
    """The ids of the word alone, and its ids after a space if the tokenizer has a space."""
    found = {tuple(tokenizer.encode_next(word).tolist())}
    try:
        found.add(tuple(tokenizer.encode_next(" " + word).tolist()))
    except TokenizerError:  # the tokenizer has no space, so the word never follows one
        return found
    return found
