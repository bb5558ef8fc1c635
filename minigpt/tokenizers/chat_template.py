"""Write a chat as plain text that any tokenizer can encode.

    System: Be brief.          <- read, not learned
    User: Where is Paris?      <- read, not learned
    Assistant: In France.<eos> <- " In France.<eos>" is learned; "Assistant:" asks for a reply

Notable choices:
- The only special token is the end of text, which ends every reply. So a model with any vocabulary can learn to chat,
  even one of characters.
- A message that contains "User: " looks like a new turn. If that matters, choose other markers in template.json.
- The space before a reply belongs to the reply. BPE encodes " In" as one token, so the model has never seen a prompt
  that ends with a space.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.errors import DataError, RunError, nearest
from minigpt.files import parse_json, read_text, write_text
from minigpt.layout import TEMPLATE, RunFolder
from minigpt.tokenizers.base import Tokenizer

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]
"""{"role": "user", "content": "Where is Paris?"}."""


class Piece(NamedTuple):
    """A part of a chat, encoded separately: its text, whether it is learned, and whether the end of text follows."""

    text: str
    learned: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Template:
    """The text around the content, {}, of each role's messages."""

    system: str = "System: {}\n"
    user: str = "User: {}\n"
    assistant: str = "Assistant: {}\n"

    def pieces(self, messages: Sequence[Message], eos: bool = True) -> list[Piece]:
        """The pieces of a whole chat, up to its last reply; what follows teaches nothing and is left out.

        eos: whether the tokenizer has an end of text; if not, the template's text after a reply ends it.
        """
        return _joined(self._spell(messages, eos), until_reply=True)

    def question(self, messages: Sequence[Message], eos: bool = True) -> list[Piece]:
        """The pieces of a chat so far, and the text that asks for the assistant's reply."""
        return _joined([*self._spell(messages, eos), Piece(self.lead)])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of `question`, without end-of-text tokens; exact if the chat has no reply yet."""
        return "".join(piece.text for piece in self.question(messages))

    @property
    def lead(self) -> str:
        """The text that asks for a reply, "Assistant:"."""
        return self.assistant.split("{}")[0].rstrip(" ")

    def stops(self, eos: bool = True) -> tuple[str, ...]:
        """Texts that end a reply: what a model that forgets the end of text writes next, "\\nUser:".

        Without an end of text, the text after a reply ends it. If nothing comes before a user's message, the end of a
        reply cannot be told from a line end within it, so the end of text alone ends it.
        """
        after, user = self._reply[1], self.user.split("{}")[0].rstrip()
        return tuple(sorted({after + user if user else "", "" if eos else after} - {""}))

    @property
    def begin(self) -> str:
        """The spaces between `lead` and a reply."""
        return self._reply[0]

    @property
    def _reply(self) -> tuple[str, str]:
        """The text between `lead` and a reply, and the text after the reply."""
        before, after = self.assistant.split("{}")
        return before.removeprefix(self.lead), after

    def _spell(self, messages: Sequence[Message], eos: bool) -> Iterable[Piece]:
        space, after = self._reply
        for message in messages:
            text = message["content"]
            if message["role"] != "assistant":
                before, behind = getattr(self, message["role"]).split("{}")
                yield Piece(before + text + behind)
                continue
            yield Piece(self.lead)
            yield Piece(space + text + ("" if eos else after), learned=True, ends=eos)
            if eos:
                yield Piece(after)

    def jinja(self, eos: bool = True) -> str:
        """This template as Hugging Face's `chat_template`.

        eos: whether the tokenizer has an end of text; `eos_token` must be set there then.
        """
        space, after = self._reply
        spelled = []
        for role in ("system", "user"):
            before, behind = getattr(self, role).split("{}")
            test = "if" if role == "system" else "elif"
            said = f"{_literal(before)} + message['content'] + {_literal(behind)}"
            spelled.append(f"{{% {test} message['role'] == '{role}' %}}{{{{ {said} }}}}")
        end = f"eos_token + ('' if loop.last else {_literal(after)})" if eos else _literal(after)
        reply = f"{_literal(self.lead + space)} + message['content'] + {end}"
        return (
            "{% for message in messages %}" + "".join(spelled) + f"{{% else %}}{{{{ {reply} }}}}{{% endif %}}"
            "{% endfor %}{% if add_generation_prompt %}{{ " + _literal(self.lead) + " }}{% endif %}"
        )  # fmt: skip

    def to_json(self) -> str:
        """The content of template.json."""
        return json.dumps(asdict(self) | {"chat_template": self.jinja()}, ensure_ascii=False, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write template.json. Raises StorageError."""
        write_text(folder / TEMPLATE, self.to_json())


def read_template(path: Path) -> Template:
    """Read a template.json. Raises DataError if it is not a template."""
    try:
        text = read_text(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a template ({error}); give a template.json") from None
    return parse_template(text, str(path))


def parse_template(text: str, path: str) -> Template:
    """The template in a text that stands at `path`. Raises DataError if it is not a template."""
    try:
        tree: Any = parse_json(text)
    except ValueError as error:
        raise DataError(f"{path}: cannot be read as a template ({error}); give a template.json") from None
    if not isinstance(tree, dict):
        raise DataError(f'{path}: is not an object; write {{"user": "User: {{}}\\n", ...}}')
    for role, spelled in tree.items():
        if role not in (*ROLES, "chat_template"):
            raise DataError(f"{path}: no such role: {role}; {nearest(role, ROLES)}")
        if role in ROLES and (not isinstance(spelled, str) or spelled.count("{}") != 1):
            raise DataError(f"{path}: {role} must be text with one {{}}, where the message goes")
    template = Template(**{role: tree[role] for role in ROLES if role in tree})
    if not template.lead:
        raise DataError(f"{path}: assistant must begin with what asks for a reply, like Assistant: {{}}")
    return template


def load_template(run: str | Path) -> Template:
    """The template of a run that was fine-tuned on chats, or of one of its checkpoints.

    Raises:
        RunError: it has none.
        DataError: its template.json is damaged.
    """
    file = RunFolder.of(run, TEMPLATE).template
    if file.is_file():
        return read_template(file)
    raise RunError(f"{run}: has no {TEMPLATE}, so it was not tuned on chats; minigpt finetune does that")


def encode_question(messages: Sequence[Message], template: Template, tokenizer: Tokenizer) -> list[int]:
    """Ids of a chat that asks for a reply, encoded as in fine-tuning. Raises TokenizerError."""
    return encode(template.question(messages, tokenizer.eos_id is not None), tokenizer)[0].tolist()


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n], whether each is learned [n]) of pieces, each encoded separately. Raises TokenizerError."""
    ids: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    for piece in pieces:
        ends = [tokenizer.eos_id] if piece.ends and tokenizer.eos_id is not None else []
        text = tokenizer.encode_next(piece.text) if ids else tokenizer.encode_array(piece.text)
        ids.append(np.concatenate([text, np.array(ends, dtype=tokenizer.dtype)]))
        learned.append(np.full(len(ids[-1]), piece.learned))
    return np.concatenate(ids), np.concatenate(learned)


def _literal(text: str) -> str:
    """A text in quotes, as JSON: llama.cpp and transformers.js know the escapes \\n and \\", but not \\xe9 for é."""
    return json.dumps(text, ensure_ascii=False)


def _joined(pieces: Iterable[Piece], until_reply: bool = False) -> list[Piece]:
    """Join neighbouring pieces that are not learned, so that a question has the same ids with and without its reply."""
    out: list[Piece] = []
    for piece in pieces:
        if out and not piece.learned and not out[-1].learned:
            out[-1] = Piece(out[-1].text + piece.text)
        elif piece.text:
            out.append(piece)
    while until_reply and out and not out[-1].learned:
        out.pop()
    return out
