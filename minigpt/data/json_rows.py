"""Recognise JSON in a text file, and read its rows as a stream. All code that reads JSON data uses this module.

    lines     {"text": "..."}\\n{"text": "..."}\\n              one object per line, with any file name
    values    [{"text": "..."}, ...], ["...", ...], {...}     a list, or objects over several lines

A file is JSON if its name says so (.jsonl, .ndjson, .json, in any case, and .gz of these), or if it begins like JSON.
So a model does not learn JSON syntax as prose. A text that only begins with a bracket, "[1] Introduction", stays text.
"""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from minigpt.data.text_files import Blocks, decoded, head
from minigpt.errors import DataError, first_names
from minigpt.files import MOST, parse_json
from minigpt.tokenizers.base import valid_unicode

Form = Literal["lines", "values"]

LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
"""Endings of names that mean JSON lines, in any case."""
LONGEST_NAME = 40
"""Most characters of a field's name that an error shows."""
_STRING = r'"(?:[^"\\]|\\.)*"'
_OBJECT = re.compile(rf"[\[\s]*\{{\s*{_STRING}\s*:", re.S)
_STRINGS = re.compile(rf'\[\s*{_STRING}\s*,\s*"', re.S)
_SPACE = re.compile(r"[ \t\n\r]*")


def json_form(path: Path, encoding: str = "utf-8") -> Form | None:
    """The form of a file's JSON, None for a text. Raises DataError if it cannot be read."""
    start, whole = head(path)
    try:
        text = codecs.getincrementaldecoder(encoding)("replace").decode(start, final=whole)
    except UnicodeError:  # reading the file will report the error
        text = ""
    return form_of(path.name, text, whole)


def form_of(name: str, text: str, whole: bool = True) -> Form | None:
    """The form of a file's JSON, from its name and its first text; None for a text. `whole`: this is all its text."""
    name, text = name.lower(), text.removeprefix("\ufeff").lstrip()
    line, _, rest = text.partition("\n")
    alone = whole and not rest.strip()
    value = _value(line) if alone or len(line) < len(text) else None
    one_a_line = not line.rstrip().endswith(("{", "[", ",")) and not (isinstance(value, list) and alone)
    if isinstance(value, dict) or (name.endswith(LINES) and one_a_line):
        return "lines"
    if name.endswith((*LINES, ".json", ".json.gz")):
        return "values"
    if _OBJECT.match(text):
        return "lines" if one_a_line and text.startswith("{") else "values"
    if text.startswith(("[", "{")) and (_STRINGS.match(text) or (whole and _value(text) is not None)):
        return "values"
    return None


def _value(text: str) -> Any:
    """The value of a JSON text; None if it is not JSON."""
    try:
        return parse_json(text)
    except ValueError:
        return None


def json_rows(
    blocks: Blocks, form: Form, label: str, line: str = "{label}:{number}", example: str = ', like {"text": "..."}'
) -> Iterator[tuple[str, Any]]:
    """Yield (place, row) for every row of a text. A row is an object; in a list it may also be a string.

    Args:
        label: the text's name, used in places.
        line: format of the place of a line.
        example: the end of the hint in errors, such as ', like {"text": "..."}'.

    Raises:
        DataError: a row is not JSON, or neither an object nor a string; the message has its place.
    """
    fix = f"give one object per line{example}, or a list of such objects"
    rows = _values(blocks, label, fix) if form == "values" else _lines(blocks, label, line, fix)
    for where, row in rows:
        if not isinstance(row, (dict, str) if form == "values" else dict):
            raise DataError(f"{where}: is not an object, but {type(row).__name__}; each row is one object{example}")
        yield where, row


def read_documents(
    path: Path, encoding: str, field: str, label: str | None = None, form: Form | None = None
) -> Iterator[Blocks]:
    """Yield the documents of one file: one for a plain text, one per row for JSON (`form`: see `json_form`).

    Raises:
        EncodingError: a byte is not in the encoding; the message has its offset.
        DataError: unreadable, a broken gzip, or a row that is not an object with the field.
    """
    label = label or str(path)
    blocks, example = decoded(path, encoding, label), f', like {{"{field}": "..."}}'
    if form is None:
        yield blocks
        return
    for where, row in json_rows(blocks, form, label, "{label} line {number:,}", example):
        yield iter((valid_unicode(row) if isinstance(row, str) else text_of(row, field, where),))


def text_of(row: dict[str, Any], field: str, where: str) -> str:
    """The text in a row's field. Raises DataError naming the row's fields if it is missing."""
    if field not in row:
        names = field_names(row) or "none"
        raise DataError(
            f"{where}: has no field {field!r}, but {names}; rename one to {field!r}, or name it with --data.text-field"
        )
    text = row[field]
    if not isinstance(text, str):
        raise DataError(
            f"{where}: the field {field!r} holds {type(text).__name__}, not text; put a text there, or name another "
            "field with --data.text-field"
        )
    return valid_unicode(text)  # JSON may hold half of a \ud83d\ude00 pair


def field_names(row: dict[str, Any]) -> str:
    """The names of a row's first fields, for an error; a file can be one object with a million fields."""
    return first_names([name[:LONGEST_NAME] for name in row])


def _lines(blocks: Blocks, label: str, place: str, fix: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) for each line that is not blank."""
    for number, line in enumerate(_split(blocks, label, fix), 1):
        if line and not line.isspace():
            where = place.format(label=label, number=number)
            try:
                value = parse_json(line)
            except ValueError as error:
                raise DataError(f"{where}: is not JSON ({error}); {fix}") from None
            yield where, value


def _split(blocks: Blocks, label: str, fix: str) -> Iterator[str]:
    """Yield lines without their \\n. Only \\n ends a line, since JSON may contain other line separators."""
    parts: list[str] = []
    for block in blocks:
        first, *rest = block.split("\n")
        parts.append(first)
        if sum(map(len, parts)) > MOST:
            raise DataError(f"{label}: a line is longer than {MOST >> 20} MB; {fix}")
        for line in rest:
            yield "".join(parts)
            parts = [line]
    yield "".join(parts)


class _Text:
    """A text that arrives in blocks, with a position that moves forward. The text before it is dropped."""

    def __init__(self, blocks: Blocks, label: str, fix: str):
        self.blocks, self.label, self.fix, self.text, self.at = blocks, label, fix, "", 0

    def more(self) -> bool:
        """Read blocks until the text from here on is twice as long. Returns False if there are no more blocks."""
        self.text, self.at = self.text[self.at :], 0
        size = len(self.text)
        if size > MOST:
            raise DataError(f"{self.label}: one item is longer than {MOST >> 20} MB; {self.fix}")
        parts = [self.text]
        while size < 2 * len(self.text) + 1 and (block := next(self.blocks, "")):
            parts.append(block)
            size += len(block)
        self.text = "".join(parts)
        return len(parts) > 1

    def peek(self) -> str:
        """Move to the next character that is not white space and return it; "" at the end."""
        while (at := _SPACE.match(self.text, self.at).end()) == len(self.text):  # pyright: ignore[reportOptionalMemberAccess]
            if not self.more():
                return ""
        self.at = at
        return self.text[at]


def _values(blocks: Blocks, label: str, fix: str) -> Iterator[tuple[str, Any]]:
    """Yield the items of a list, or a sequence of values, with one in memory at a time."""
    text, decoder, number = _Text(blocks, label, fix), json.JSONDecoder(), 1
    listed = text.peek() == "["
    text.at += listed

    def bad(why: str) -> DataError:
        return DataError(f"{label} item {number}: is not JSON ({why}); {fix}")

    while (char := text.peek()) and not (listed and char == "]"):
        try:
            value, text.at = decoder.raw_decode(text.text, text.at)
        except RecursionError:
            raise bad("it is nested too deeply") from None
        except ValueError as error:
            if not text.more():
                raise bad(str(getattr(error, "msg", error))) from None
            continue
        yield f"{label} item {number}", value
        number += 1
        if listed and text.peek() == ",":
            text.at += 1
        elif listed and text.peek() != "]":
            raise bad("no comma before it" if text.peek() else "the list has no end")
    if listed and not char:
        raise bad("the list has no end")
    text.at += listed
    if text.peek():
        raise bad("there is more after the list")
