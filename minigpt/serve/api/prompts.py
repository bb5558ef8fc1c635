"""Turn a request into jobs: its texts become ids, its fields become settings. This file does not know HTTP."""

import secrets
from collections.abc import Sequence
from typing import Any

from minigpt.config import GenerationConfig, validate
from minigpt.config.section import SEEDS
from minigpt.errors import GenerationError
from minigpt.generation.chat import Message, Turns
from minigpt.generation.chat.conversation import fit
from minigpt.generation.text.bias_and_bans import make_rules
from minigpt.serve.api.errors import ApiError
from minigpt.serve.api.schemas import ChatMessage, Sampled
from minigpt.serve.engine import Job
from minigpt.serve.limits import Limits
from minigpt.serve.models import Loaded

OURS = (
    "temperature top_p top_k min_p typical_p repetition_penalty presence_penalty frequency_penalty num_beams"
).split()
"""Fields of a request that are minigpt's settings under the same name."""
ALONE = {"num_samples": 1, "best_of": 1, "penalty_alpha": 0.0, "prompt_lookup": 0, "num_beam_groups": 1, "num_beams": 1}
"""Settings of a run that a request does not take over: the number of texts, and searches."""
SMALLEST = 1e-9
Prompt = str | list[int]


def prompts_of(given: Prompt | list[str] | list[list[int]] | None) -> list[Prompt]:
    """One prompt or several, as several."""
    if given is None or isinstance(given, str):
        return [given or ""]
    return [given] if isinstance(given[0], int) else list(given)  # pyright: ignore


def encode(prompt: Prompt, loaded: Loaded) -> list[int]:
    """Ids of a prompt. An empty prompt becomes the end-of-text token, after which a new text begins.

    Raises:
        ApiError: an id that the tokenizer does not have.
        GenerationError: an empty prompt, and a tokenizer without an end of text.
        TokenizerError: a text that it cannot encode.
    """
    tokenizer = loaded.run.tokenizer
    if isinstance(prompt, list):
        if wrong := next((id_ for id_ in prompt if id_ >= tokenizer.vocab_size), None):
            raise ApiError(400, f"there is no token {wrong}; ids go from 0 to {tokenizer.vocab_size - 1}", "prompt")
        return prompt
    ids = tokenizer.encode(loaded.run.clean(prompt))
    if not ids and tokenizer.eos_id is None:
        raise GenerationError(f"the prompt has no {tokenizer.unit}; give some text")
    return ids or [tokenizer.eos_id]  # pyright: ignore[reportReturnType]


def settings(
    asked: Sampled, loaded: Loaded, limits: Limits, most: int | None, *, logprobs: int | None, stop: Sequence[str] = ()
) -> GenerationConfig:
    """The run's settings, overridden by those of a request.

    Args:
        most: new tokens (default: the run's own).
        stop: texts that end a text, in addition to those of the request.

    Raises:
        ConfigError: settings that cannot be combined.
    """
    own = loaded.run.config.generation
    given: dict[str, Any] = {name: value for name in OURS if (value := getattr(asked, name)) is not None}
    if "top_p" in given:
        given["top_p"] = max(given["top_p"], SMALLEST)
    if asked.stop is not None:
        given["stop"] = [asked.stop] if isinstance(asked.stop, str) else asked.stop
    if asked.logit_bias is not None:
        given["logit_bias"] = {_token(name): value for name, value in asked.logit_bias.items()}
    if asked.searches:
        given["num_samples"] = asked.n or 1
    fields = own.model_dump() | ALONE | given
    fields["max_new_tokens"] = max(1, min(own.max_new_tokens if most is None else most, limits.tokens))
    fields |= {"seed": 0, "logprobs": logprobs, "max_seconds": limits.seconds}
    config = validate({"generation": fields}).generation.cleaned(loaded.run.clean)
    return config.model_copy(update={"stop": (*config.stop, *stop)})


def _token(name: str) -> str:
    """Turn OpenAI's "13" into our "#13"."""
    if not (name.isascii() and name.isdecimal()) or len(name) > 10:
        raise ApiError(400, f"logit_bias: {name!r} is not the id of a token", "logit_bias")
    return f"#{int(name)}"


def seed_of(asked: Sampled) -> int:
    """The request's seed, or a random one."""
    return secrets.randbelow(SEEDS) if asked.seed is None else asked.seed % SEEDS


def make_jobs(
    loaded: Loaded, prompts: Sequence[list[int]], config: GenerationConfig, seed: int, copies: int, **more: Any
) -> list[Job]:
    """`copies` texts for each prompt, text i with seed + i; `more` are fields of `Job`. Raises GenerationError."""
    tokenizer = loaded.run.tokenizer
    more = {"most": config.max_new_tokens, "rules": make_rules(config, tokenizer), **more}
    return [
        Job(ids, tokenizer, config, (seed + copy) % SEEDS, tell=lambda event: None, **more)
        for ids in prompts
        for copy in range(copies)
    ]


def read_chat(given: Sequence[ChatMessage], loaded: Loaded, room: int) -> list[int]:
    """Ids of a chat. If it does not fit next to `room` new tokens, its oldest turns are left out.

    Raises:
        ApiError: a model that was not tuned on chats, or only messages of the system.
        GenerationError, TokenizerError.
    """
    messages = []
    for message in given:
        content = message.content
        text = content if isinstance(content, str) else "".join(part.text for part in content)
        role = "system" if message.role == "developer" else message.role
        messages.append(Message(role, loaded.run.clean(text)))
    if all(message.role == "system" for message in messages):
        raise ApiError(400, "messages: the user says nothing", "messages")
    chat_format, limit = turns_of(loaded), loaded.run.model.config.max_seq_len
    return chat_format.encode(fit(messages, chat_format.encode, limit, min(room, limit // 2)))


def turns_of(loaded: Loaded) -> Turns:
    """How the model writes a chat. Raises ApiError if it was not tuned on chats."""
    chat_format = loaded.chat_format
    if not isinstance(chat_format, Turns):
        raise ApiError(
            400,
            f"{loaded.run.name} was not tuned on chats; continue a text with /v1/completions, or teach it to chat with "
            "minigpt finetune",
            "model",
            "not_a_chat_model",
        )
    return chat_format
