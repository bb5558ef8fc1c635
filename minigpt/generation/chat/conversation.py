"""Encode a conversation as ids, and choose which part of it the model reads when the context is full."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

from minigpt.console import counted
from minigpt.errors import GenerationError
from minigpt.tokenizers import Tokenizer

Encode = Callable[[Sequence["Message"]], list[int]]


@dataclass(frozen=True)
class Message:
    """A text and who said it, one of `chat_template.ROLES`."""

    role: str
    content: str


class ChatFormat(Protocol):
    """How messages become ids."""

    @property
    def roles(self) -> bool:
        """Whether the model knows who speaks. If not, all messages are one text."""
        ...

    @property
    def begin(self) -> str:
        """Spaces at the beginning of an answer's ids that are not part of its message."""
        ...

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer."""
        ...

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Ids up to the beginning of the answer, or up to its end so far if the last message is the assistant's."""
        ...


@dataclass(frozen=True)
class Plain:
    """All messages as one text, for a model that was not tuned on chats."""

    tokenizer: Tokenizer
    roles: bool = False
    begin: str = ""
    stop: tuple[str, ...] = ()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of all messages, joined."""
        return self.tokenizer.encode("".join(message.content for message in messages))


@dataclass(frozen=True)
class Turns:
    """Messages with roles, encoded by a chat template.

    Args:
        question: [{"role": ..., "content": ...}] -> ids up to the beginning of the answer.
    """

    tokenizer: Tokenizer
    question: Callable[[list[dict[str, str]]], list[int]]
    begin: str = ""
    stop: tuple[str, ...] = ()
    roles: bool = True

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of the question, and of the answer so far if there is one."""
        going_on = messages[-1].role == "assistant"
        ids = self.question([asdict(message) for message in (messages[:-1] if going_on else messages)])
        return ids + self.tokenizer.encode_next(self.begin + messages[-1].content).tolist() if going_on else ids


def fit(messages: Sequence[Message], encode: Encode, limit: int, room: int) -> list[Message]:
    """Choose the system message and as many of the newest turns as leave `room` of `limit` tokens free.

    A turn begins with a message of the user. If even the last turn alone does not fit, it is cut on the left.

    Raises:
        GenerationError: next to the system message, nothing of the last turn fits.
    """
    head = list(messages[:1]) if messages[0].role == "system" else []
    turns = list(messages[len(head) :])
    starts = [at for at, message in enumerate(turns) if at == 0 or message.role == "user"] or [0]

    def size(first: int) -> int:
        return len(encode(head + turns[starts[first] :]))

    first = bisect_left(range(len(starts) - 1), True, key=lambda first: size(first) <= limit - room)
    kept = head + turns[starts[first] :]
    if len(encode(kept)) <= limit:
        return kept
    for place in range(len(head), len(kept)):
        kept[place] = _cut(kept, place, encode, limit - room)
    nothing_left = head and not any(message.content for message in kept[1:])
    if nothing_left or len(encode(kept)) > limit:
        raise GenerationError(
            f"the system text leaves no room in the context of {counted(limit, 'token')}; /system sets a shorter one"
        )
    return kept


def _cut(messages: list[Message], place: int, encode: Encode, most: int) -> Message:
    """Cut the message at `place` on the left until all messages together have at most `most` tokens."""
    role, text = messages[place].role, messages[place].content

    def fits(dropped: int) -> bool:
        return len(encode([*messages[:place], Message(role, text[dropped:]), *messages[place + 1 :]])) <= most

    return Message(role, text[bisect_left(range(len(text)), True, key=fits) :])
