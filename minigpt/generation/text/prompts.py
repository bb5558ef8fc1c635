"""Encode prompts as ids. Warns about text that the model cannot read, then generates anyway."""

import warnings
from collections.abc import Iterable, Sequence

from minigpt.console import counted
from minigpt.errors import GenerationError
from minigpt.files import read_piped
from minigpt.tokenizers import EOS, Tokenizer
from minigpt.tokenizers.base import listed, valid_unicode

MOST = 1 << 24
"""Largest prompt, in bytes, that is read from a file or a pipe."""


def typed_prompt(given: str) -> str:
    """Read a prompt of the command line; "-" means standard input. Raises GenerationError if it is not UTF-8."""
    if given == "-":
        try:
            return read_piped(MOST)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or error
            raise GenerationError(f"standard input: cannot be read ({why}); pipe UTF-8 text") from None
    if valid_unicode(given) != given:
        raise GenerationError("the prompt is not UTF-8; write it into a UTF-8 file and give that: --prompt - < FILE")
    return given


def encode_prompts(prompts: Sequence[str | Sequence[int]], tokenizer: Tokenizer, limit: int) -> list[list[int]]:
    """Encode prompts (prompts that are ids stay as they are) and keep the last `limit` ids of each.

    There is one warning for all prompts that are cut, and one for all units (characters or words) that the tokenizer
    does not have.

    Raises:
        GenerationError: a prompt is empty, or has no token.
        TokenizerError: the tokenizer cannot encode a text.
    """
    if not all(len(prompt) for prompt in prompts):
        raise GenerationError('the prompt is empty; give some text, for example --prompt "Once upon a time"')
    found = [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    if not all(found):
        raise GenerationError("the prompt has no word, and this model reads words; give one, for example The")
    sizes = [len(ids) for ids in found if len(ids) > limit]
    if sizes:
        who = "the prompt has" if len(found) == 1 else f"{len(sizes)} of {len(found)} prompts have up to"
        message = f"{who} {counted(max(sizes), 'token')}; only the last {limit:,} fit into the model's context"
        warnings.warn(message, stacklevel=3)
    if tokenizer.unit == "character" and any(isinstance(prompt, str) and EOS in prompt for prompt in prompts):
        warnings.warn(f"{EOS} in a prompt is read as {len(EOS)} characters, not as the end of a text", stacklevel=3)
    if message := tell_unknown((prompt for prompt in prompts if isinstance(prompt, str)), tokenizer):
        warnings.warn(message, stacklevel=3)
    return [ids[-limit:] for ids in found]


def encode_prompt(prompt: str | Sequence[int], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Encode one prompt; see `encode_prompts`."""
    return encode_prompts([prompt], tokenizer, limit)[0]


def tell_unknown(texts: Iterable[str], tokenizer: Tokenizer) -> str:
    """A message about units that the tokenizer does not have; the model reads them all as one id. "" if none."""
    between = " " if tokenizer.unit == "word" else ""  # the last word of a text and the first of the next are two
    found = tokenizer.unknown_parts(between.join(texts))
    return f"{counted(len(found), tokenizer.unit)} that the model never saw: {listed(found)}" if found else ""
