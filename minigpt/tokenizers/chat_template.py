"""How a chat is spelled as text, in characters that any tokenizer can have been trained on.

    System: Be brief.          <- read, not learned
    User: Where is Paris?      <- read, not learned
    Assistant: In France.<eos> <- " In France.<eos>" is learned, "Assistant:" is what a reply is asked for with

Notable: no special tokens but the end of text, which ends every reply, so a model of any vocabulary, characters too,
can learn to chat. A text that itself says "User: " looks like a turn; who must rule that out takes other markers.
The space before a reply is the reply's: BPE spells " In" as one token, and a prompt that ends with a space would ask
for what was never seen.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from minigpt.errors import DataError, RunError, nearest
from minigpt.files import parse_json, write_text
from minigpt.layout import TEMPLATE, RunFolder
from minigpt.tokenizers.base import Tokenizer

ROLES = ("system", "user", "assistant")
Message = Mapping[str, str]
"""{"role": "user", "content": "Where is Paris?"}."""


class Piece(NamedTuple):
    """A stretch of text that is encoded by itself: whether it is learned, and whether the end of text follows."""

    text: str
    learned: bool = False
    ends: bool = False


@dataclass(frozen=True)
class Template:
    """What stands around the content, {}, of each role's messages."""

    system: str = "System: {}\n"
    user: str = "User: {}\n"
    assistant: str = "Assistant: {}\n"

    def pieces(self, messages: Sequence[Message], eos: bool = True) -> list[Piece]:
        """A whole chat; what follows the last reply teaches nothing and is left out.

        eos: whether the tokenizer has an end of text; without one, what the template puts after a reply ends it.
        """
        return _joined(self._spell(messages, eos), until_reply=True)

    def question(self, messages: Sequence[Message], eos: bool = True) -> list[Piece]:
        """A chat so far, and what asks for the assistant's reply."""
        return _joined([*self._spell(messages, eos), Piece(self.lead)])

    def prompt(self, messages: Sequence[Message]) -> str:
        """The text of `question`, without ends of text: exact for chats that hold no reply yet."""
        return "".join(piece.text for piece in self.question(messages))

    @property
    def lead(self) -> str:
        """What asks for a reply, "Assistant:"."""
        return self.assistant.split("{}")[0].rstrip(" ")

    def _spell(self, messages: Sequence[Message], eos: bool) -> Iterable[Piece]:
        space, after = (part.removeprefix(self.lead) for part in self.assistant.split("{}"))
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

    def jinja(self) -> str:
        """The same as a `chat_template` of Hugging Face; `eos_token` must be set there."""
        space, after = (part.removeprefix(self.lead) for part in self.assistant.split("{}"))
        spelled = []
        for role in ("system", "user"):
            before, behind = getattr(self, role).split("{}")
            test = "if" if role == "system" else "elif"
            spelled.append(
                f"{{% {test} message['role'] == '{role}' %}}{{{{ {before!a} + message['content'] + {behind!a} }}}}"
            )
        reply = f"{self.lead + space!a} + message['content'] + eos_token + ('' if loop.last else {after!a})"
        return (
            "{% for message in messages %}" + "".join(spelled) + f"{{% else %}}{{{{ {reply} }}}}{{% endif %}}"
            "{% endfor %}{% if add_generation_prompt %}{{ " + f"{self.lead!a}" + " }}{% endif %}"
        )  # fmt: skip

    def to_json(self) -> str:
        """The content of template.json."""
        return json.dumps(asdict(self) | {"chat_template": self.jinja()}, ensure_ascii=False, indent=1) + "\n"

    def save(self, folder: Path) -> None:
        """Write template.json. Raises StorageError."""
        write_text(folder / TEMPLATE, self.to_json())


def read_template(path: Path) -> Template:
    """The template of a template.json. Raises DataError for what is none."""
    try:
        tree: Any = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
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
    """The template of a run (or of a checkpoint of it) that was fine-tuned on chats.

    Raises:
        RunError: it has none.
        DataError: its template.json is damaged.
    """
    file = RunFolder.of(run, TEMPLATE).template
    if file.is_file():
        return read_template(file)
    raise RunError(f"{run}: has no {TEMPLATE}, so it was not tuned on chats; minigpt finetune does that")


def encode_question(messages: Sequence[Message], template: Template, tokenizer: Tokenizer) -> list[int]:
    """Ids of a chat that asks for a reply, just as fine-tuning spelled it. Raises TokenizerError."""
    return encode(template.question(messages, tokenizer.eos_id is not None), tokenizer)[0].tolist()


def encode(pieces: Iterable[Piece], tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(ids [n], whether each is learned [n]) of pieces, each encoded by itself. Raises TokenizerError."""
    ids: list[np.ndarray] = []
    learned: list[np.ndarray] = []
    for piece in pieces:
        ends = [tokenizer.eos_id] if piece.ends and tokenizer.eos_id is not None else []
        ids.append(np.concatenate([tokenizer.encode_array(piece.text), np.array(ends, dtype=tokenizer.dtype)]))
        learned.append(np.full(len(ids[-1]), piece.learned))
    return np.concatenate(ids), np.concatenate(learned)


def _joined(pieces: Iterable[Piece], until_reply: bool = False) -> list[Piece]:
    """Neighbours that are only read, as one piece, so that a question is encoded alike whether its reply is there."""
    out: list[Piece] = []
    for piece in pieces:
        if out and not piece.learned and not out[-1].learned:
            out[-1] = Piece(out[-1].text + piece.text)
        elif piece.text:
            out.append(piece)
    while until_reply and out and not out[-1].learned:
        out.pop()
    return out
