"""Print a command's help: `-h` shows the most used options, `--help` all of them, `--help SECTION` one section."""

import dataclasses
import inspect
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_origin

from rich.text import Text

from minigpt.cli.fields import Argument, metavar, without_none
from minigpt.console import SafeConsole
from minigpt.errors import UserError, nearest

INDENT = 26
"""Column where the text of an option begins."""
MOST_WIDTH = 110
"""Longer lines are hard to read, also on a wide terminal."""


@dataclasses.dataclass(frozen=True)
class Row:
    """An option: its dotted path, its spelling, what it takes, its text, its default."""

    path: str
    spelled: str
    takes: str
    text: str
    default: str


@dataclasses.dataclass(frozen=True)
class Section:
    """Options under one title."""

    about: str
    rows: Sequence[Row]


def config_sections(command: str) -> dict[str, Any]:
    """The sections of the config tree that a command takes, by name."""
    # imported here, because other commands' help needs no config and is twice as fast without it
    from minigpt.config import RunConfig

    fields = RunConfig.model_fields
    hidden = () if command in ("finetune", "sweep") else ("finetune", "lora")
    return {name: field for name, field in fields.items() if name not in hidden}


def print_help(
    kind: type, arguments: Sequence[Argument], command: str, config: Mapping[str, Any], words: Sequence[str]
) -> None:
    """Print the help that the words ask for.

    Args:
        kind: the command's dataclass; COMMON, if it has that, lists the paths of the options that -h shows.
        arguments: the arguments of `kind`.
        command: "train", for the usage line.
        config: from `config_sections`; {} for a command that takes none.
        words: the words that the person typed, with -h, --help, or --help and a section's name.

    Raises UserError for a section that does not exist.
    """
    sections = {name: part for name, part in _sections(arguments, config).items() if part.rows}
    after = list(words[words.index("--help") + 1 :][:1]) if "--help" in words else []
    page = _Page(min(shutil.get_terminal_size().columns, MOST_WIDTH))
    if after and len(sections) > 1 and not after[0].startswith("-"):
        if after[0] not in sections:
            raise UserError(
                f"--help {after[0]}: no such section; {nearest(after[0], sections, f'see minigpt {command} -h')}"
            )
        page.section(after[0], sections[after[0]])
        return
    page.head(kind, arguments, command)
    common = getattr(kind, "COMMON", ())
    if "--help" in words or not (common or config):
        for name, section in sections.items():
            page.section(name, section)
        return
    rows = {row.path: row for section in sections.values() for row in section.rows}
    if common:
        page.section("most used options", Section("", [rows[path] for path in common]))
    elif "options" in sections:
        page.section("options", sections["options"])
    names = ", ".join(sections)
    page.paragraph(
        f"All {len(rows) - 1} options: minigpt {command} --help. "
        f"One section of them: minigpt {command} --help NAME, where NAME is one of {names}."
    )


def _sections(arguments: Sequence[Argument], config: Mapping[str, Any]) -> dict[str, Section]:
    """All options of a command by section; settings of generation have their own section."""
    how = "-h shows the most used options, --help all of them, --help SECTION one section, such as --help model."
    own, generation = [Row("help", "-h, --help", "", how if config else "Show this help.", "")], []
    for flag in (argument for argument in arguments if not argument.positional):
        spelled = f"--no-{flag.flag[2:]}" if flag.switch and flag.default is True else flag.flag
        row = Row(flag.name, spelled, "" if flag.switch else metavar(flag.kind), flag.help, _default(flag))
        (generation if flag.is_setting else own).append(row)
    about = "How text is generated. The default of each is the run's own setting."
    sections = {"options": Section("", own), "generation": Section(about, generation)}
    for name, field in config.items():
        rows = [
            Row(f"{name}.{setting}", f"--{name}.{setting.replace('_', '-')}",
                metavar(without_none(info.annotation)[0]), info.description or "",
                _plain(getattr(field.default, setting)))
            for setting, info in type(field.default).model_fields.items()
        ]  # fmt: skip
        sections[name] = Section(type(field.default).__doc__ or "", rows)
    return sections


class _Page:
    """Prints within a width; no word is broken, and no line ends in blanks."""

    def __init__(self, width: int):
        self.width = width
        self.console = SafeConsole(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def head(self, kind: type, arguments: Sequence[Argument], command: str) -> None:
        """Print the usage line, the command's docstring, and its positional words."""
        places = [argument for argument in arguments if argument.positional]
        usage = ["[-h]", "[OPTIONS]"]
        for place in places:
            name = place.name.upper() + (" ..." if place.many else "")
            usage.append(name if place.default is dataclasses.MISSING else f"[{name}]")
        self.console.print(f"usage: minigpt {command} {' '.join(usage)}\n")
        for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
            lines = paragraph.split("\n")
            if all(re.search(r"(^|\| *)minigpt ", line.strip()) for line in lines):
                self.console.print("\n".join(map(self._example, lines)) + "\n")
            else:
                self.paragraph(paragraph)
        if places:
            rows = [
                Row(place.name, place.name.upper(), _choices(place), place.help, _default(place)) for place in places
            ]
            self.section("positional arguments", Section("", rows))

    def _example(self, line: str) -> str:
        """A command, with a backslash between its flags if it is too long for one line."""
        parts, (first, *flags) = [], re.split(r" (?=--[a-z])", f"    {line.strip()}")
        for flag in flags:
            if len(first) + len(flag) + 3 > self.width:
                parts.append(first + " \\")
                first = f"        {flag}"
            else:
                first = f"{first} {flag}"
        return "\n".join([*parts, first])

    def paragraph(self, text: str) -> None:
        """Print a text, and an empty line."""
        self._lines(text, "")
        self.console.print()

    def section(self, title: str, section: Section) -> None:
        """Print a title, and each option; its text is to the right, or below if the option is long."""
        self.console.print(Text(f"{title}:", "bold"))
        if section.about:
            self._lines(section.about, "  ")
        for row in section.rows:
            head = Text.assemble("  ", (row.spelled, "bold"), " " if row.takes else "", (row.takes, "cyan"))
            with_default = row.default and "(default:" not in row.text
            text = " ".join(row.text.split()) + (f" (default: {row.default})" if with_default else "")
            lines = self._wrapped(text, " " * INDENT)
            if lines and len(head) <= INDENT - 2:
                head.append(lines.pop(0)[len(head) :])
            self.console.print(head)
            for line in lines:
                self.console.print(line)
        self.console.print()

    def _lines(self, text: str, indent: str) -> None:
        for line in self._wrapped(" ".join(text.split()), indent):
            self.console.print(line)

    def _wrapped(self, text: str, indent: str) -> list[str]:
        return textwrap.wrap(
            text, self.width, initial_indent=indent, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )  # fmt: skip


def _choices(place: Argument) -> str:
    return metavar(place.kind) if get_origin(place.kind) is Literal else ""


def _default(argument: Argument) -> str:
    return "" if argument.switch or argument.default is dataclasses.MISSING else _plain(argument.default)


def _plain(value: Any) -> str:
    """A default as a person would write it; "" for nothing."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return "" if value is None or value == {} else str(value)
