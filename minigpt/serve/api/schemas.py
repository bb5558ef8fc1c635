"""Describe requests and answers as in OpenAI's API; minigpt's own settings are added under their own names."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer

Text = Annotated[str, Field(max_length=4 << 20)]
Id = Annotated[int, Field(ge=0, lt=2**31)]
Ids = Annotated[list[Id], Field(min_length=1, max_length=1 << 20)]
Many = 512
"""Most texts in one request."""
Stop = Annotated[str, Field(min_length=1, max_length=1000)]
Role = Literal["system", "developer", "user", "assistant"]


class StrictModel(BaseModel):
    """A request or a part of it. Numbers must be numbers, not texts that look like them. Unknown fields are ignored."""

    model_config = ConfigDict(strict=True, use_attribute_docstrings=True, allow_inf_nan=False)


class StreamOptions(StrictModel):
    """How a stream is sent."""

    include_usage: bool | None = None
    """Send a last piece with the number of tokens."""


class Sampled(StrictModel):
    """What completions and chats have in common. A setting that is left out has the run's value."""

    model: Annotated[str, Field(max_length=500)]
    """A name from GET /v1/models."""
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Largest number of new tokens in each text."""
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
    """Texts at which the writing stops; they are not written."""
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    """Seed of the random draws; text i of a prompt draws with seed + i. If it is left out, each request has another
    seed.
    """
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-1000, le=1000)]], Field(max_length=1024)] | None = None
    """Added to the logits of tokens: {"13": -100}."""
    presence_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from the logits of tokens that were written before."""
    frequency_penalty: Annotated[float, Field(ge=-100, le=100)] | None = None
    """Subtracted from a token's logit for each time that it was written."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Not used."""
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    """Keep the k likeliest tokens; 0: all. This setting and all that follow are minigpt's own."""
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    """Keep tokens at least p times as likely as the likeliest."""
    typical_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Keep the fewest tokens of near-average surprise whose probabilities sum to p."""
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    """Divides positive logits of tokens that occurred before, also in the prompt, and multiplies negative ones."""
    num_beams: Annotated[int, Field(ge=1, le=64)] | None = None
    """Beam search: hypotheses kept at each step; not with stream or logprobs."""

    @property
    def searches(self) -> bool:
        """Whether beams are searched, instead of one text after another."""
        return (self.num_beams or 1) > 1


class CompletionRequest(Sampled):
    """POST /v1/completions."""

    prompt: (
        Text | Annotated[list[Text], Field(min_length=1, max_length=Many)] | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=Many)] | None
    ) = None  # fmt: skip
    """A text, several texts, ids, or several lists of ids. If it is left out: the beginning of a new text."""
    best_of: Annotated[int, Field(ge=1, le=128)] | None = None
    """Write this many texts, and answer with the n whose tokens are likeliest on average; not with stream."""
    echo: bool | None = None
    """Begin the answer with the prompt. With max_tokens 0 and logprobs, this scores a text."""
    logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Give the log-probability of each token, and of this many likeliest ones, before any setting."""
    suffix: Annotated[str, Field(max_length=0)] | None = None
    """Must be empty: these models cannot use a text that follows the completion."""


class TextPart(StrictModel):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class ChatMessage(StrictModel):
    """A message of a chat."""

    role: Role
    """developer means system."""
    content: Text | Annotated[list[TextPart], Field(max_length=1000)]


class ResponseFormat(StrictModel):
    """Only text is possible."""

    type: Literal["text"]


class ChatRequest(Sampled):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    """All messages so far. If the last one is the assistant's, the model continues it. Messages that do not fit are
    left out, the oldest first."""
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    """OpenAI's newer name for max_tokens."""
    logprobs: bool | None = None
    """Give the log-probability of each token."""
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None = None
    """Also give this many of the likeliest tokens."""
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Any], Field(max_length=0)] | None = None
    """Must be empty: these models call no tools."""


class EmbeddingRequest(StrictModel):
    """POST /v1/embeddings."""

    model: Annotated[str, Field(max_length=500)]
    """A name from GET /v1/models."""
    input: (
        Text | Annotated[list[Text], Field(min_length=1, max_length=Many)] | Ids
        | Annotated[list[Ids], Field(min_length=1, max_length=Many)]
    )  # fmt: skip
    """A text, several texts, ids, or several lists of ids; each must fit into the model's context."""
    dimensions: Annotated[int, Field(ge=1)] | None = None
    """Must be the model's width: these vectors cannot be shortened."""
    encoding_format: Literal["float", "base64"] | None = None
    """base64: the numbers as float32, little-endian, in base64."""
    user: Annotated[str, Field(max_length=1000)] | None = None
    """Not used."""


class TokenizeRequest(StrictModel):
    """POST /tokenize."""

    model: Annotated[str, Field(max_length=500)]
    prompt: Text


class DetokenizeRequest(StrictModel):
    """POST /detokenize."""

    model: Annotated[str, Field(max_length=500)]
    tokens: Annotated[list[Id], Field(max_length=1 << 20)]


# --- answers ---


class CachedTokens(BaseModel):
    """How many of the prompt's tokens were known from an earlier chat, and how many were read."""

    cached_tokens: int
    read_tokens: int


class Usage(BaseModel):
    """Numbers of tokens in a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: CachedTokens


class CompletionLogprobs(BaseModel):
    """Scores token by token. A token that is half a character is written as bytes:\\xe2. The first token has no
    score.
    """

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
    """A token and its log-probability. `bytes` has what `token` cannot show."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token that was written."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Scores token by token."""

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
    """A piece of the assistant's answer; fields without a value are left out, as clients expect."""

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
    """A model that can be used."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "minigpt"


class ModelList(BaseModel):
    """All models."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Embedding(BaseModel):
    """The mean of the last hidden states of a text, as numbers or as base64."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Numbers of tokens."""

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
