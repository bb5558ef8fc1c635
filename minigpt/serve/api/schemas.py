"""What is asked and answered, as OpenAI's API has it; our own settings beside it, under their own names."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Text = Annotated[str, Field(max_length=4 << 20)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=1 << 20)]
Many = 512
"""Texts of one request."""
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Role = Literal["system", "developer", "user", "assistant"]


class Asked(BaseModel):
    """A request: numbers are numbers, not texts that look so. Fields that are not known change nothing."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class StreamOptions(Asked):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Send a last piece with the count of tokens."""


class Sampled(Asked):
    """What completions and chats have in common. A setting that is left out is the run's own."""

    model: Annotated[str, Field(max_length=500)]
    """A name of GET /v1/models."""
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """New tokens of each text at most."""
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    """Divides the logits; 0 is greedy."""
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep the fewest tokens whose probabilities sum to p."""
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    """Texts for each prompt."""
    stream: bool | None = None
    """Send the text piece by piece."""
    stream_options: StreamOptions | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    """Texts that end the writing; they are not written."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Of the draws; text i of a prompt draws with seed + i. Left out: another one each time."""
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-1000, le=1000)]], Field(max_length=1024)] | None = None
    """Added to the logits of tokens: {"13": -100}."""
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from the logits of tokens that were written."""
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from a token's logit each time that it was written."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Not used."""
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Keep the k likeliest tokens; 0: all. Ours, as all that follow."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep tokens at least p times as likely as the likeliest."""
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the fewest tokens of near-average surprise whose probabilities sum to p."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    """Logits of tokens that occurred are divided by this, prompt included."""
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    """Beam search: hypotheses kept at each step; not with stream or logprobs."""


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1, max_length=Many)] | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=Many)] | None
    ) = None  # fmt: skip
    """A text, several, ids, or several lists of ids. Nothing: the beginning of a new text."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Write so many, and answer the n whose tokens are likeliest on average; not with stream."""
    echo: bool | None = None
    """Begin the answer with the prompt. With max_tokens 0 and logprobs, this scores a text."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Tell the log-probability of each token, and of so many likeliest, before any setting."""
    suffix: Annotated[str, Field(max_length=0)] | None = None
    """What comes after a text is not known to these models."""


class TextPart(Asked):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(Asked):
    """What somebody said."""

    role: Role
    """developer is system."""
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]


class ResponseFormat(Asked):
    """Only text."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    """All that was said. Where the last is the assistant's, it goes on. Those that do not fit are left out, oldest
    first."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """OpenAI's newer name of max_tokens."""
    logprobs: bool | None = None
    """Tell the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """And of so many likeliest."""
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """These models call no tools."""


class EmbeddingRequest(Asked):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=500)]
    """A name of GET /v1/models."""
    input: (
        Text | Annotated[list[Text], Field(min_length=1, max_length=Many)] | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=Many)]
    )  # fmt: skip
    """A text, several, ids, or several lists of ids; each within the model's context."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: of the numbers as float32, little-endian."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Not used."""


class TokenizeRequest(Asked):
    """POST /tokenize."""

    model: Annotated[str, Field(max_length=500)]
    prompt: Text


class DetokenizeRequest(Asked):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=500)]
    tokens: Annotated[list[Id], Field(max_length=1 << 20)]


# --- answers ---


class CachedTokens(BaseModel):
    """Of the prompt's tokens: those whose keys and values were known from an earlier chat, and those that were read."""

    cached_tokens: int
    read_tokens: int


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(BaseModel):
    """Token by token. A token that is half a character is written as bytes:\\xe2. The first of all has no score."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


Finish = Literal["stop", "length"]


class CompletionChoice(BaseModel):
    """A text, or a piece of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Finish | None


class Completion(BaseModel):
    """The answer of /v1/completions, and each piece of its stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class TopLogprob(BaseModel):
    """A token, and how likely it was. `bytes` has what `token` cannot show."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class Reply(BaseModel):
    """What the assistant said."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """An answer."""

    index: int
    message: Reply
    logprobs: ChatLogprobs | None
    finish_reason: Finish


class ChatCompletion(BaseModel):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str | None = None


class Delta(BaseModel):
    """A piece of what the assistant says; what it does not hold is left out, as clients expect."""

    role: Literal["assistant"] | None = None
    content: str | None = None

    @model_serializer(mode="wrap")
    def _without_none(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in serialize(self).items() if value is not None}


class ChatChunkChoice(BaseModel):
    """A piece of an answer."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None
    finish_reason: Finish | None


class ChatChunk(BaseModel):
    """A piece of the stream of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | None = None
    system_fingerprint: str | None = None


class ModelCard(BaseModel):
    """A model that can be asked for."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "minigpt"


class ModelList(BaseModel):
    """All."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Embedding(BaseModel):
    """The mean of the last hidden states of a text, as numbers or as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The answer of /v1/embeddings."""

    object: Literal["list"] = "list"
    data: list[Embedding]
    model: str
    usage: EmbeddingUsage


class Tokenized(BaseModel):
    """The answer of /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class Detokenized(BaseModel):
    """The answer of /detokenize."""

    prompt: str


class Health(BaseModel):
    """The answer of /health."""

    status: Literal["ok", "loading"]
