"""Text in, text out."""

from collections.abc import Iterator
from typing import Any

import torch

from minigpt.config import GenerationConfig
from minigpt.errors import ConfigError, GenerationError
from minigpt.generation.engine import generate
from minigpt.model import GPT
from minigpt.tokenizers import TextStream, Tokenizer, load


def stream_text(
    model: GPT, tokenizer: Tokenizer, prompt: str, config: GenerationConfig | None = None
) -> Iterator[list[str]]:
    """Yield, for each time step, the new piece of text of every sample; never half a character.

    Args:
        prompt: not empty, and not longer than the context; the text that is generated may be.
        config: sampling settings (default: the defaults).

    Raises:
        GenerationError: a prompt that is empty or longer than the context.
        TokenizerError: a prompt that the tokenizer cannot spell.
    """
    config = config or GenerationConfig()
    if not prompt:
        raise GenerationError('the prompt is empty; give some text, for example --prompt "Once upon a time"')
    encoded, limit = tokenizer.encode(prompt), model.config.max_seq_len
    if len(encoded) > limit:
        raise GenerationError(
            f"the prompt has {len(encoded)} tokens, but the context holds {limit}; give its last part only"
        )
    ids = torch.tensor([encoded] * config.num_samples, dtype=torch.long)
    eos_id = tokenizer.eos_id if config.stop_at_eos else None
    streams = [TextStream(tokenizer) for _ in range(config.num_samples)]
    for chosen in generate(model, ids, config, eos_id):
        yield [
            stream.push(token) if token != eos_id else ""
            for stream, token in zip(streams, chosen.tolist(), strict=True)
        ]
    yield [stream.flush() for stream in streams]


def generate_text(model: GPT, prompt: str, tokenizer: Tokenizer | None = None, **settings: Any) -> str | list[str]:
    """Continue a prompt.

    generate_text(model, prompt="Once upon a time", max_new_tokens=50, temperature=0.8)

    Args:
        model: e.g. from GPT.from_pretrained(run).
        prompt: text.
        tokenizer: default: the one beside the model's source.
        settings: fields of GenerationConfig.

    Returns:
        The new text without the prompt; a list of them if num_samples is above 1.

    Raises:
        ConfigError, GenerationError, TokenizerError.
    """
    unknown = settings.keys() - GenerationConfig.model_fields.keys()
    if unknown:
        raise ConfigError(f"no such setting: {', '.join(sorted(unknown))}; {', '.join(GenerationConfig.model_fields)}")
    if tokenizer is None:
        if model.source is None:
            raise GenerationError("no tokenizer: pass tokenizer=..., or take the model from GPT.from_pretrained(run)")
        tokenizer = load(model.source)
    config = GenerationConfig(**settings)
    was_training = model.training
    model.eval()
    pieces = list(stream_text(model, tokenizer, prompt, config))
    model.train(was_training)
    texts = ["".join(column) for column in zip(*pieces, strict=True)]
    return texts[0] if config.num_samples == 1 else texts
