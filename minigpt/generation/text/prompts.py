"""Prompts -> ids. What the model cannot read of them is told by a warning: it writes on all the same."""

import warnings
from collections.abc import Sequence

from minigpt.errors import GenerationError
from minigpt.tokenizers import Tokenizer


def encode_prompts(prompts: Sequence[str | Sequence[int]], tokenizer: Tokenizer, limit: int) -> list[list[int]]:
    """Ids of texts (ids stay as they are), of each the last `limit`; one warning for all that are cut, and one for all
    characters that the tokenizer does not know.

    Raises:
        GenerationError: an empty prompt.
        TokenizerError: a text that the tokenizer cannot spell.
    """
    if not all(len(prompt) for prompt in prompts):
        raise GenerationError('the prompt is empty; give some text, for example --prompt "Once upon a time"')
    found = [tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    sizes = [len(ids) for ids in found if len(ids) > limit]
    if sizes:
        who = "the prompt has" if len(found) == 1 else f"{len(sizes)} of {len(found)} prompts have up to"
        told = f"{who} {max(sizes):,} tokens; the last {limit:,} are read, the model's context"
        warnings.warn(told, stacklevel=3)
    if told := tell_unknown("".join(prompt for prompt in prompts if isinstance(prompt, str)), tokenizer):
        warnings.warn(told, stacklevel=3)
    return [ids[-limit:] for ids in found]


def encode_prompt(prompt: str | Sequence[int], tokenizer: Tokenizer, limit: int) -> list[int]:
    """Ids of one prompt; see `encode_prompts`."""
    return encode_prompts([prompt], tokenizer, limit)[0]


def tell_unknown(text: str, tokenizer: Tokenizer) -> str:
    """What to say of characters that the tokenizer does not know (the model reads them all alike); "" if none."""
    if tokenizer.unk_id is None:
        return ""
    found = [char for char in dict.fromkeys(text) if tokenizer.unk_id in tokenizer.encode(char)]
    shown = " ".join(char if char.isprintable() and not char.isspace() else repr(char) for char in found[:20])
    more = " ..." if len(found) > 20 else ""
    return f"{len(found)} character{'s' * (len(found) > 1)} that the model never saw: {shown}{more}" if found else ""
