"""Records to fine-tune on: a JSON file (lines, or a list) of one kind, every line checked.

    completion   {"prompt": "2 + 2 =", "completion": " 4"}
    chat         {"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}
    preference   {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}

Other fields of a line are left unread. What is learned: the completion, or every reply of the assistant, each with
the end of text after it; of a preference the chosen answer, and by DPO that it is better than the rejected one. A
prompt is encoded by itself, as it will be when it is asked, so write the space between prompt and answer where the
tokenizer wants it: at the answer's beginning.

Validation is a share of the records picked by the hash of each, so that the same record is always on the same side,
copies of it too, whatever else the file holds.
"""

import hashlib
import json
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minigpt.console import counted
from minigpt.data.clean import clean_text
from minigpt.data.json_rows import json_form, json_rows
from minigpt.data.text_files import decoded, spool_stdin, unreadable
from minigpt.errors import DataError, nearest
from minigpt.files import expand_home, find
from minigpt.tokenizers.base import EOS, valid_unicode
from minigpt.tokenizers.chat_template import ROLES, Piece, Template

KINDS = {"completion": ("prompt", "completion"), "chat": ("messages",), "preference": ("prompt", "chosen", "rejected")}


@dataclass(frozen=True)
class Record:
    """One line: its place "my.jsonl:3", its kind, and the fields of that kind."""

    where: str
    kind: str
    fields: dict[str, Any]

    @property
    def digest(self) -> str:
        """sha256 (hex) of the fields."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    def pieces(self, template: Template, eos: bool, answer: str = "") -> list[Piece]:
        """Its text; `answer` is the field to take ("chosen", "rejected"), by default the one that is learned."""
        if self.kind == "chat":
            return template.pieces(self.fields["messages"], eos)
        answer = answer or KINDS[self.kind][1]
        prompt = [Piece(self.fields["prompt"])] if self.fields["prompt"] else []
        return [*prompt, Piece(self.fields[answer], learned=True, ends=True)]

    def prompt(self, template: Template) -> str:
        """What is asked first: the prompt, or the chat up to the first reply."""
        if self.kind != "chat":
            return self.fields["prompt"]
        messages = self.fields["messages"]
        first = next(at for at, message in enumerate(messages) if message["role"] == "assistant")
        return template.prompt(messages[:first])


def holds_records(source: str, encoding: str, text_field: str) -> bool:
    """Whether the source is a JSON file of records, by its first row; else it is a text. Raises DataError."""
    path = _file(source)
    form = json_form(path, encoding) if path else None
    if path is None or form is None:
        return False
    for _, row in json_rows(decoded(path, encoding, source), form, source):
        return isinstance(row, dict) and (bool(_kinds(row)) or text_field not in row)
    return False


def read_records(source: str | Path, encoding: str = "utf-8", clean: Sequence[str] = ()) -> list[Record]:
    """All records of a JSON file, or of standard input (-), cleaned as the base's texts were.

    Raises:
        DataError: no record; a row that is none, or of another kind than the first, by file and line.
    """
    records: list[Record] = []
    path = _file(source)
    if path is None:
        raise DataError(f"{source}: is not a file; name one that holds records")
    label = "standard input" if source == "-" else str(path)
    form, example = json_form(path, encoding) or "lines", ', like {"prompt": "...", "completion": "..."}'
    for where, row in json_rows(decoded(path, encoding, label), form, label, example=example):
        kinds = _kinds(row) if isinstance(row, dict) else []
        if len(kinds) != 1:
            forms = "; or ".join(" and ".join(fields) for fields in KINDS.values())
            has = (", ".join(map(str, row)) if isinstance(row, dict) else "a text") or "nothing"
            problem = f"is {' and '.join(kinds)} at once" if kinds else f"holds {has}"
            raise DataError(f"{where}: {problem}; a record has the fields {forms}")
        if records and kinds[0] != records[0].kind:
            raise DataError(f"{where}: is a {kinds[0]}, but {records[0].where} a {records[0].kind}; one kind a file")
        fields = {name: row[name] for name in KINDS[kinds[0]]}
        records.append(Record(where, kinds[0], _checked(fields, where, clean)))
    spelled = [record.where for record in records if EOS in json.dumps(record.fields)]
    if spelled:
        warnings.warn(
            f"{spelled[0]}: spells {EOS} (as {len(spelled):,} of {counted(len(records), 'record')}); it is learned as "
            "plain characters. Take it out: each answer is ended by the special token without it",
            stacklevel=2,
        )
    if not records:
        raise DataError(f"{label}: is empty; give at least two records")
    return records


def _file(source: str | Path) -> Path | None:
    """The file that a source names, standard input as one; None if it names something else. Raises DataError."""
    if source == "-":
        return spool_stdin()
    path = Path(expand_home(str(source)))
    try:
        there = find(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return path if there and stat.S_ISREG(there.st_mode) else None


def split_records(records: Sequence[Record], val_fraction: float) -> tuple[list[Record], list[Record]]:
    """(training, validation): records whose hash falls into the share; always one at least on each side.

    Raises DataError for fewer than two different records.
    """
    digests = {record.digest for record in records}
    if len(digests) < 2:
        raise DataError(f"{records[0].where}: is the only record, so none can be held out; give two, or a val_source")
    held = {digest for digest in digests if int(digest[:13], 16) < val_fraction * 16**13} or {min(digests)}
    if held == digests:
        held.remove(max(digests))
    train = [record for record in records if record.digest not in held]
    return train, [record for record in records if record.digest in held]


def _kinds(row: dict[str, Any]) -> list[str]:
    return [kind for kind, fields in KINDS.items() if all(field in row for field in fields)]


def _checked(fields: dict[str, Any], where: str, clean: Sequence[str]) -> dict[str, Any]:
    """The fields with every text checked and cleaned."""
    if "messages" in fields:
        return {"messages": _messages(fields["messages"], where, clean)}
    return {name: _text(value, name, where, clean, empty=name == "prompt") for name, value in fields.items()}


def _messages(given: Any, where: str, clean: Sequence[str]) -> list[dict[str, str]]:
    if not isinstance(given, list):
        raise DataError(f"{where}: messages is {type(given).__name__}, not a list")
    out = []
    for number, message in enumerate(given, 1):
        name = f"message {number}"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise DataError(f"{where}: {name} is not an object with role and content")
        role = message["role"]
        if role not in ROLES:
            raise DataError(f"{where}: {name} has the role {role!r}; {nearest(str(role), ROLES)}")
        content = _text(message["content"], f"{name}'s content", where, clean, empty=role != "assistant")
        out.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in out):
        raise DataError(f"{where}: no message of the assistant, so nothing to learn")
    return out


def _text(value: Any, name: str, where: str, clean: Sequence[str], empty: bool) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}, not text")
    if not value and not empty:
        raise DataError(f"{where}: {name} is empty, so nothing to learn")
    return clean_text(valid_unicode(value), clean)
