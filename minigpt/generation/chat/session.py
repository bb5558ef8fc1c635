"""Hold one conversation: its messages, its settings, and answers that arrive in pieces.

Notable choices:
- Messages are a tuple that is replaced, never changed in place. So an answer that is stopped or fails keeps the text
  written so far, and `undo` restores the old tuple after any change.
- Answer number n is drawn with the seed plus n. So another try differs, and a saved session continues exactly as the
  original would have.
- Methods that write are generators of pieces. They do nothing, and raise no error, before the first piece is requested.
"""

import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minigpt.config import GenerationConfig, validate
from minigpt.config.section import SEEDS
from minigpt.console import counted
from minigpt.errors import ConfigError, GenerationError
from minigpt.generation.chat.conversation import ChatFormat, Message, Plain, fit
from minigpt.generation.engine import Reader
from minigpt.generation.text import Completion, Writing
from minigpt.model import GPT
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.base import valid_unicode

HALF = "\ufffd"  # shown in place of an incomplete character


@dataclass(frozen=True)
class Ended:
    """How an answer ended (eos, stop, length, time or interrupted), its tokens, and its seconds, prefill included."""

    reason: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Alternatives:
    """One position of an answer: the token there, and the likeliest tokens as (id, text, probability)."""

    text: str
    probability: float
    choices: list[tuple[int, str, float]]


class Session:
    """A conversation with a model.

    Attributes:
        messages: the conversation so far.
        config: settings of generation.
        answers: number of answers written, each new try included.
        ended: how the last answer ended.
        is_cut: whether the last answer was written without reading all messages, because they did not fit.

    Args:
        model: in evaluation mode.
        chat_format: how messages become ids (default: as one text).
        clean: cleans a text in the same way as the training text was cleaned.
        draft: see `Writing`.

    Raises:
        ConfigError: a setting does not work in a chat.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        config: GenerationConfig | None = None,
        chat_format: ChatFormat | None = None,
        clean: Callable[[str], str] = str,
        draft: GPT | None = None,
    ):
        self.model, self.tokenizer, self.clean, self.draft = model, tokenizer, clean, draft
        self.chat_format: ChatFormat = chat_format or Plain(tokenizer)
        self.config = GenerationConfig()
        self.update(config.model_dump() if config else {})
        self.messages: tuple[Message, ...] = ()
        self.answers, self.is_cut = 0, False
        self.ended: Ended | None = None
        self._past: list[tuple[Message, ...]] = []
        self._stopping = False

    def update(self, settings: Mapping[str, Any]) -> None:
        """Change settings: all of them, or none if it raises ConfigError."""
        try:
            config = validate({"generation": self.config.model_dump() | dict(settings)}).generation
        except ConfigError as error:
            raise ConfigError([re.sub(r"^generation[.:] ?", "", problem) for problem in error.problems]) from None
        if config.num_samples != 1:
            raise ConfigError("num_samples: a chat has one answer at a time; /regenerate writes another")
        if config.logprobs is not None:
            raise ConfigError("logprobs: /alternatives shows them in a chat")
        self.config = config.cleaned(self.clean)

    def say(self, text: str) -> Generator[str]:
        """Answer the user's text. A model without roles continues the text instead.

        Without roles, the text begins on a new line of the conversation, unless it begins with a space.

        Raises:
            GenerationError, TokenizerError: and then nothing has changed.
        """
        text = self.clean(valid_unicode(text))
        before = _text(self.messages)
        if not self.chat_format.roles and before and not before[-1].isspace() and not text[:1].isspace():
            text = "\n" + text
        yield from self._write((*self.messages, Message("user", text)))

    def extend(self) -> Generator[str]:
        """Continue the last answer. Raises GenerationError, TokenizerError."""
        *before, last = self._spoken("continue")
        yield from self._write((*before, Message(last.role, last.content.rstrip(HALF))))

    def regenerate(self) -> Generator[str]:
        """Write the last answer again, with another seed. Raises GenerationError, TokenizerError."""
        messages = self._spoken("regenerate")
        asked = messages[:-1] if messages[-1].role == "assistant" else messages
        if not asked:
            raise GenerationError("there is no text before the answer")
        yield from self._write(asked)

    def choose(self, place: int, rank: int) -> Generator[str]:
        """Replace the token at `place` of the last answer by its alternative `rank`, and continue from there.

        Both numbers count from 1.

        Raises:
            GenerationError: no such place or rank, or the alternative is an incomplete character.
        """
        choices = self.alternatives(place, max(rank, 1)).choices
        if not 1 <= rank <= len(choices):
            raise GenerationError(f"choose from 1 to {len(choices)}")
        id_, before = choices[rank - 1][0], self._answer_ids()[: place - 1]
        content = self.tokenizer.decode([*before, id_]).lstrip(self.chat_format.begin)
        if content.endswith(HALF) and id_ != self.tokenizer.unk_id:
            raise GenerationError(f"alternative {rank} is half a character; choose another")
        yield content
        turns = (*self.messages[:-1], Message("assistant", content))
        if id_ == self.tokenizer.eos_id:
            self._replace(turns)
            self.ended = Ended("eos", 1, 0.0)
            return
        yield from self._write(turns)

    def stop(self) -> None:
        """End the current answer at its next token. May be called from a signal handler or another thread."""
        self._stopping = True

    def undo(self) -> None:
        """Undo the last change, or remove the last turn if there is none (a loaded session). Raises GenerationError."""
        if self._past:
            self.messages = self._past.pop()
            return
        asked = [at for at, message in enumerate(self.messages) if message.role == "user"]
        if not asked:
            raise GenerationError("there is nothing to undo")
        self.messages = self.messages[: asked[-1]]

    def set_system(self, text: str) -> None:
        """Set the text that the model reads before all turns; "" removes it. Raises GenerationError without roles."""
        if not self.chat_format.roles:
            raise GenerationError("this model was not tuned on chats, so it cannot use a system text; fine-tune it")
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        self._replace((Message("system", self.clean(valid_unicode(text))), *turns) if text else turns)

    def restore(self, messages: Iterable[Message], settings: Mapping[str, Any], answers: int) -> None:
        """Continue from another state. Raises ConfigError or GenerationError, and then changes nothing."""
        messages = tuple(messages)
        if not self.chat_format.roles and any(message.role == "system" for message in messages):
            raise GenerationError(
                "the file has a system text, but this model was not tuned on chats; load it with its run"
            )
        self.update(settings)
        if self.messages or self._past:
            self._replace(messages)
        self.messages, self.answers = messages, answers  # no past: `undo` removes the last turn

    def alternatives(self, place: int, count: int = 10) -> Alternatives:
        """Find the likeliest tokens at a place (from 1) of the last answer, by the model without sampling settings.

        Places count the tokens of the encoded answer. The model may have written the same text with other BPE tokens.

        Raises:
            GenerationError: there is no such place.
        """
        ids = self._answer_ids()
        if not ids:
            raise GenerationError("the last answer is empty; /regenerate writes another")
        if not 1 <= place <= len(ids):
            raise GenerationError(f"the last answer has {counted(len(ids), 'token')}; choose from 1 to {len(ids)}")
        (scores,) = self._scores([place])
        values, likeliest = scores.topk(min(count, self.tokenizer.vocab_size))
        found = zip(likeliest.tolist(), values.exp().tolist(), strict=True)
        here, label = ids[place - 1], self.tokenizer.label
        return Alternatives(
            label(here), scores[here].exp().item(), [(id_, label(id_), chance) for id_, chance in found]
        )

    def tokens(self) -> list[tuple[str, float]]:
        """List the last answer's tokens, each with its probability. Raises GenerationError."""
        ids = self._answer_ids()
        scores, label = self._scores(range(1, len(ids) + 1)), self.tokenizer.label
        return [(label(id_), score[id_].exp().item()) for id_, score in zip(ids, scores, strict=True)]

    def _write(self, turns: Sequence[Message]) -> Generator[str]:
        """Write the answer to `turns`, or continue it if the assistant's turn is last. Each piece is kept at once."""
        self._stopping, start, done = False, time.monotonic(), False
        asked, content = (turns[:-1], turns[-1].content) if turns[-1].role == "assistant" else (turns, "")
        writing = self._writing(turns)
        compared = self.config.best_of > 1  # the best is known only at the end
        try:
            for step, pieces in enumerate(writing):
                piece = "" if compared else pieces[0]
                piece = piece if content else piece.lstrip(self.chat_format.begin)
                content += piece
                if step == 0:
                    self._past.append(self.messages)
                    self.answers += 1
                self.messages = (*asked, Message("assistant", content))
                yield piece
                if self._stopping:
                    break
            else:
                done = True
            if compared:
                best = writing.completions[0][0].text
                best = best if content else best.lstrip(self.chat_format.begin)
                self.messages = (*asked, Message("assistant", content + best))
                yield best
        finally:
            written = (*writing.completions[0], Completion())[0]  # there is none if the first step failed
            self.ended = Ended(written.reason if done else "interrupted", written.tokens, time.monotonic() - start)

    def _writing(self, turns: Sequence[Message]) -> Writing:
        read = self._read(turns)
        ids = self.chat_format.encode(read)
        if not ids:
            raise GenerationError("there is no text to continue; type some")
        config = self.config.model_copy(update={"stop": (*self.config.stop, *self.chat_format.stop)})
        # ids instead of text, since a text cannot contain the end-of-text ids between turns
        seeds = [(self.config.seed + self.answers) % SEEDS]
        writing = Writing(self.model, self.tokenizer, [ids], config, seeds, self.draft)
        self.is_cut = _text(read) != _text(turns)
        return writing

    def _read(self, messages: Sequence[Message]) -> list[Message]:
        """The messages that fit in the context together with an answer of max_new_tokens, or of half the context.

        Without roles they are one text, whose last part is read: its turns would begin in the middle of a story.
        """
        limit = self.model.config.max_seq_len
        if not self.chat_format.roles:
            messages = [Message(messages[-1].role, _text(messages))]
        return fit(messages, self.chat_format.encode, limit, min(self.config.max_new_tokens, limit // 2))

    def _replace(self, messages: tuple[Message, ...]) -> None:
        self._past.append(self.messages)
        self.messages = messages

    def _spoken(self, verb: str) -> tuple[Message, ...]:
        """The messages, if there is an answer or a text to `verb`."""
        if not self.messages or self.messages[-1].role == "system":
            raise GenerationError(f"there is nothing to {verb} yet; type some text")
        return self.messages

    def _answer_ids(self) -> list[int]:
        if not self.messages or self.messages[-1].role != "assistant":
            raise GenerationError("there is no answer yet; type some text")
        return self.tokenizer.encode_next(self.chat_format.begin + self.messages[-1].content).tolist()

    @torch.inference_mode()
    def _scores(self, places: Iterable[int]) -> Iterator[Tensor]:
        """Log-probabilities [V] at places of the last answer, read in the same way as in generation."""
        asked = self.messages[:-1]
        ids = self.chat_format.encode(self._read(asked)) if asked else []
        if not ids:
            raise GenerationError("there is no text before the answer")
        tokens = torch.tensor([ids + self._answer_ids()], device=self.model.embedding.weight.device)  # [1, T]
        reader = Reader(self.model, [0])
        for place in places:
            yield reader.logits(tokens[:, : len(ids) + place - 1])[0].float().log_softmax(-1)


def _text(messages: Iterable[Message]) -> str:
    return "".join(message.content for message in messages)
