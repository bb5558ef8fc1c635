"""Read and check the records to fine-tune on: a JSON file (lines, or a list) whose rows all have one layout.

    completion   {"prompt": "2 + 2 =", "completion": " 4"}
    chat         {"messages": [{"role": "system" | "user" | "assistant", "content": "..."}, ...]}         OpenAI
                 {"conversations": [{"from": "system" | "human" | "gpt", "value": "..."}, ...]}           ShareGPT
                 {"instruction": "Add.", "input": "2 + 2", "output": "4"}, input may be left out          Alpaca
    preference   {"prompt": "2 + 2 =", "chosen": " 4", "rejected": " 5"}

A row's keys tell its layout; other fields are ignored. An Alpaca row becomes a chat: the user's message is the
instruction, with the input on the next line; the assistant's reply is the output.

The model learns the completion, or every reply of the assistant, each with the end of text after it. From a preference
it learns the chosen answer; with DPO it learns that the chosen answer is better than the rejected one. A prompt is
encoded separately, as in generation. So write the space between prompt and answer at the beginning of the answer, where
the tokenizer needs it.

Each record's hash decides whether the record is used for validation. So a record and its copies are always on the same
side, even if the rest of the file changes.
"""

import hashlib
import json
import stat
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from minigpt.config import RunConfig
from minigpt.console import counted
from minigpt.data.clean import clean_text
from minigpt.data.json_rows import field_names, json_form, json_rows
from minigpt.data.text_files import decoded, spool_stdin, unreadable
from minigpt.errors import DataError, nearest
from minigpt.files import expand_home, find
from minigpt.tokenizers.base import EOS, valid_unicode
from minigpt.tokenizers.chat_template import ROLES, Piece, Template

Sides = tuple[list["Record"], list["Record"]]
"""Records for training, and for validation."""
KINDS = {"completion": ("prompt", "completion"), "chat": ("messages",), "preference": ("prompt", "chosen", "rejected")}
LAYOUTS = {
    ("prompt", "completion"): "completion",
    ("messages",): "chat",
    ("conversations",): "chat",
    ("instruction", "output"): "chat",
    ("prompt", "chosen", "rejected"): "preference",
}
"""The fields that a row must have -> its kind of record."""
SPEAKERS = {**{role: role for role in ROLES}, "human": "user", "gpt": "assistant"}
"""The name of a speaker in a message -> its role."""


@dataclass(frozen=True)
class Record:
    """One line: its place "my.jsonl:3", its kind, and the fields of that kind."""

    where: str
    kind: str
    fields: dict[str, Any]

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of the fields."""
        return hashlib.sha256(json.dumps(self.fields, sort_keys=True).encode()).hexdigest()

    def pieces(self, template: Template, eos: bool, answer: str = "") -> list[Piece]:
        """The record's text. `answer` is the answer's field ("chosen", "rejected"; default: the learned one)."""
        if self.kind == "chat":
            return template.pieces(self.fields["messages"], eos)
        answer = answer or KINDS[self.kind][1]
        prompt = [Piece(self.fields["prompt"])] if self.fields["prompt"] else []
        return [*prompt, Piece(self.fields[answer], learned=True, ends=True)]

    def prompt(self, template: Template) -> str:
        """The first question: the prompt, or the chat up to the first reply."""
        if self.kind != "chat":
            return self.fields["prompt"]
        messages = self.fields["messages"]
        first = next(at for at, message in enumerate(messages) if message["role"] == "assistant")
        return template.prompt(messages[:first])

    def asked(self) -> list[str]:
        """The text just before each answer: the prompt, or the message before a reply ("" if there is none)."""
        if self.kind != "chat":
            return [self.fields["prompt"]]
        messages = [{"role": "", "content": ""}, *self.fields["messages"]]
        return [before["content"] for before, m in pairwise(messages) if m["role"] == "assistant"]


def holds_records(source: str, encoding: str, text_field: str) -> bool:
    """Whether the source is a JSON file of records (its first row decides) and not a text. Raises DataError."""
    path = _file(source)
    form = json_form(path, encoding) if path else None
    if path is None or form is None:
        return False
    for _, row in json_rows(decoded(path, encoding, source), form, source):
        return isinstance(row, dict) and (bool(_layouts(row)) or text_field not in row)
    return False


def read_records(source: str | Path, encoding: str = "utf-8", clean: Sequence[str] = ()) -> list[Record]:
    """All records of a JSON file, or of standard input (-), cleaned in the same way as the base's texts.

    Raises:
        DataError: no record; or a row (named by file and line) that is not a record, or not in the first row's layout.
    """
    records: list[Record] = []
    first: tuple[str, ...] = ()
    path = _file(source)
    if path is None:
        raise DataError(f"{source}: is not a file; name one that holds records")
    label = "standard input" if source == "-" else str(path)
    form, example = json_form(path, encoding) or "lines", ', like {"prompt": "...", "completion": "..."}'
    for where, row in json_rows(decoded(path, encoding, label), form, label, example=example):
        layouts = _layouts(row) if isinstance(row, dict) else []
        if len(layouts) != 1:
            forms = "; or ".join(map(listing, LAYOUTS))
            has = field_names(row) if isinstance(row, dict) else "a text"
            raise DataError(f"{where}: holds {has or 'nothing'}; a record has the fields of one layout: {forms}")
        first = first or layouts[0]
        if layouts[0] != first:
            raise DataError(
                f"{where}: has {listing(layouts[0])}, but {records[0].where} has {listing(first)}; "
                f"write every row of a file with {listing(first)}"
            )
        records.append(Record(where, LAYOUTS[first], _checked(row, first, where, clean)))
    spelled = [record.where for record in records if EOS in json.dumps(record.fields)]
    if spelled:
        warnings.warn(
            f"{spelled[0]}: contains {EOS} ({len(spelled):,} of {counted(len(records), 'record')} do); it is learned "
            "as plain characters. Remove it: minigpt adds the special token after each answer itself",
            stacklevel=2,
        )
    if not records:
        raise DataError(f"{label}: is empty; give at least two records")
    return records


def _file(source: str | Path) -> Path | None:
    """The file that a source names (standard input becomes a file); None if it is not a file. Raises DataError."""
    if source == "-":
        return spool_stdin()
    path = Path(expand_home(str(source)))
    try:
        there = find(path)
    except OSError as error:
        raise unreadable(path, error) from None
    return path if there and stat.S_ISREG(there.st_mode) else None


def split_records(records: Sequence[Record], val_fraction: float) -> tuple[list[Record], list[Record]]:
    """(training, validation): the hash of a record decides its side; each side gets at least one record.

    Raises DataError if there are fewer than two different records.
    """
    digests = {record.digest for record in records}
    if len(digests) < 2:
        fix = "give two, or name others to validate on with --finetune.val-source"
        raise DataError(f"{records[0].where}: is the only record, so none can be held out; {fix}")
    held = {digest for digest in digests if int(digest[:13], 16) < val_fraction * 16**13} or {min(digests)}
    if held == digests:
        held.remove(max(digests))
    train = [record for record in records if record.digest not in held]
    return train, [record for record in records if record.digest in held]


def listing(names: Sequence[Any]) -> str:
    """listing(["prompt", "chosen", "rejected"]) -> "prompt, chosen and rejected"."""
    return " and ".join(filter(None, (", ".join(map(str, names[:-1])), *map(str, names[-1:]))))


def read_sides(config: RunConfig) -> Sides:
    """Read the records for training, and for validation. Raises DataError."""
    data, held = config.data, config.finetune.val_source
    train = read_records(data.source, data.encoding, data.clean)
    if config.finetune.dpo_beta and train[0].kind != "preference":
        raise DataError(f"{train[0].where}: is a {train[0].kind}, but DPO needs prompt, chosen and rejected")
    if not held:
        return split_records(train, data.val_fraction)
    val = read_records(held, data.encoding, data.clean)
    if val[0].kind != train[0].kind:
        raise DataError(f"{val[0].where}: is a {val[0].kind}, but {train[0].where} a {train[0].kind}")
    return train, val


def _layouts(row: dict[str, Any]) -> list[tuple[str, ...]]:
    return [fields for fields in LAYOUTS if all(field in row for field in fields)]


def _checked(row: dict[str, Any], layout: tuple[str, ...], where: str, clean: Sequence[str]) -> dict[str, Any]:
    """The fields of the record's kind, with every text checked and cleaned."""
    if len(layout) == 1:
        return {"messages": _messages(row[layout[0]], layout[0], where, clean)}
    given = {"input": row.get("input") or ""} if layout[0] == "instruction" else {}
    given |= {name: row[name] for name in layout}
    optional = ("prompt", "input")
    texts = {name: _text(value, name, where, clean, empty=name in optional) for name, value in given.items()}
    if layout[0] != "instruction":
        return texts
    asked = texts["instruction"] + ("\n" + texts["input"] if texts["input"] else "")
    spoken = (("user", asked), ("assistant", texts["output"]))
    return {"messages": [{"role": role, "content": content} for role, content in spoken]}


def _messages(given: Any, field: str, where: str, clean: Sequence[str]) -> list[dict[str, str]]:
    wanted = ("from", "value") if field == "conversations" else ("role", "content")
    if not isinstance(given, list):
        raise DataError(f"{where}: {field} is {type(given).__name__}, not a list")
    out = []
    for number, message in enumerate(given, 1):
        name = f"message {number}"
        pairs = (("role", "content"), ("from", "value"))  # some files call a list of messages conversations
        keys = next((keys for keys in pairs if isinstance(message, dict) and {*keys} <= message.keys()), None)
        if keys is None:
            raise DataError(f"{where}: {name} is not an object with {listing(wanted)}")
        speaker = message[keys[0]]
        if not isinstance(speaker, str) or speaker not in SPEAKERS:
            raise DataError(f"{where}: {name} has the role {speaker!r}; {nearest(str(speaker), SPEAKERS)}")
        role = SPEAKERS[speaker]
        content = _text(message[keys[1]], f"{name}'s {keys[1]}", where, clean, empty=role != "assistant")
        out.append({"role": role, "content": content})
    if all(message["role"] != "assistant" for message in out):
        raise DataError(f"{where}: no message of the assistant, so nothing to learn")
    return out


def _text(value: Any, name: str, where: str, clean: Sequence[str], empty: bool) -> str:
    if not isinstance(value, str):
        raise DataError(f"{where}: {name} is {type(value).__name__}, not text")
    text = clean_text(valid_unicode(value), clean)
    if not text and not empty:
        after = f" after cleaning ({', '.join(clean)})" if value else ""
        raise DataError(f"{where}: {name} is empty{after}, so nothing to learn")
    return text
