"""Parse a command's words into its dataclass, and print its help from the docstrings of the same dataclass.

    @dataclass(frozen=True)
    class Export:
        '''What the command does, then examples.'''
        run: Positional[str]
        '''Help of the argument.'''
        max_len: int | None = None
        '''Help of --max-len.'''

A field is a positional word or a flag; its type says which words it takes: str, PathText (where ~ is the home folder),
Name, int, float, Path, bool (`--json`, or `--no-plot` where the default is True; true or false may follow), Literal,
tuple[str, ...] (one or more words), dict[str, float] (pairs of words), or one of these or None.
The config flags (--train.max-steps 10) are taken out before, by `split_flags`.
"""

import ast
import dataclasses
import inspect
import itertools
import re
import sys
import textwrap
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from minigpt.config import RunConfig, find_recipe, load_config, recipes, split_flags
from minigpt.config.load import SWITCH_VALUES
from minigpt.errors import UserError, nearest
from minigpt.files import expand_home
from minigpt.layout import check_name, is_pointer

Args = TypeVar("Args")
Kind = TypeVar("Kind")
Positional = Annotated[Kind, "positional"]
"""The type of an argument that is given by its place."""


class PathText(str):
    """The path of a file or folder, the name of a data set or recipe, or - for standard input; ~ is the home folder."""


class Name(str):
    """The name of a run that is to be made; none that leaves the folder of the runs."""


READERS: dict[Any, Callable[[str], Any]] = {
    PathText: expand_home,
    Path: lambda word: Path(expand_home(word)),
    Name: check_name,
}
"""What makes a value of a word, where the type itself does not."""

RUNS = ("run", "runs", "one", "two", "draft")
"""Arguments that name runs."""

BOOLEANS = ("true", "false")
"""Values that a switch may have, in any case: --json, --json true, --plot=false."""


def parse(kind: type[Args], argv: list[str], command: str, with_config: bool = False) -> tuple[Args, dict[str, Any]]:
    """Parse a command's arguments; its help is the docstrings of the dataclass and its fields.

    Args:
        kind: a dataclass.
        argv: without the command's name.
        command: "train", for the usage line.
        with_config: take the settings of the config tree too (--train.max-steps 10), and list them in the help.

    Returns:
        (arguments, config overrides by dotted path).

    Raises:
        UserError: one line for what cannot be understood.
        SystemExit: after --help.
    """
    overrides, words = split_flags(argv) if with_config else ({}, list(argv))
    arguments = list(_arguments(kind))
    sections = _sections(command) if with_config else {}
    _refuse_unknown(arguments, words, sections)
    if {"-h", "--help"} & set(words):
        _print_help(kind, arguments, command, sections)
        raise SystemExit(0)
    given, places = _flags(arguments, words, command)
    given |= _positionals(kind, arguments, places, command)
    for name in RUNS:
        if isinstance(word := given.get(name), str):
            given[name] = as_run(word, command)
        elif isinstance(word, tuple):
            given[name] = tuple(as_run(each, command) for each in word)
    return kind(**given), overrides


@dataclasses.dataclass(frozen=True)
class _Argument:
    """A field: `kind` is its type without None."""

    name: str
    kind: Any
    positional: bool
    optional: bool
    default: Any
    help: str

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool and not self.optional

    @property
    def shown(self) -> str:
        """What a message calls it."""
        return self.name.upper() if self.positional else self.flag

    @property
    def many(self) -> bool:
        """Whether it takes all words up to the next flag."""
        return get_origin(self.kind) in (tuple, dict)


def _arguments(kind: type) -> Iterator[_Argument]:
    """The arguments of a dataclass, in their order."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= _docstrings(base)
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        positional = get_origin(hint) is Annotated and "positional" in get_args(hint)[1:]
        inner, optional = without_none(hint)
        text = field.metadata.get("help") or texts.get(field.name, "")
        yield _Argument(field.name, inner, positional, optional, field.default, " ".join(text.split()))


def _docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a class, by the field's name; nothing of a class that has no source."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    except (OSError, TypeError):
        return {}
    lines = tree.body if isinstance(tree, ast.ClassDef) else []
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(lines)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }  # fmt: skip


def without_none(hint: Any) -> tuple[Any, bool]:
    """(int, True) of int | None; (int, False) of int. Annotations are taken off."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = [part for part in get_args(hint) if part is not type(None)]
    inner = Union[tuple(rest)]  # noqa: UP007  as many as there are
    return (get_args(inner)[0] if get_origin(inner) is Annotated else inner), len(rest) < len(get_args(hint))


def _flags(arguments: Sequence[_Argument], words: Sequence[str], command: str) -> tuple[dict[str, Any], list[str]]:
    """(values of the flags by name, the words that are left)."""
    flags = {argument.flag: argument for argument in arguments if not argument.positional}
    values: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            return values, rest + queue
        name, equals, text = word.partition("=")
        name = name.replace("_", "-")
        if not word.startswith("--"):
            rest.append(word)
            continue
        argument = flags.get(name) or flags[f"--{name[5:]}"]  # --no-plot is plot
        taken = [text] if equals else []
        while not equals and queue and _takes(argument, taken, queue[0]):
            taken.append(queue.pop(0))
        if not taken and argument.kind is bool:
            taken = ["True"]
        if not taken:
            raise UserError(f"{name}: needs a value; write {name} VALUE")
        value = _value(argument, taken, command)
        values[argument.name] = value if name == argument.flag or value is None else not value
    return values, rest


def _takes(argument: _Argument, taken: Sequence[str], word: str) -> bool:
    """Whether the next word is a value of the flag: of a switch, only true, false and the like."""
    if argument.switch:
        return not taken and word.lower() in SWITCH_VALUES
    return not word.startswith("--") and (argument.many or not taken)


def _positionals(kind: type, arguments: Sequence[_Argument], words: list[str], command: str) -> dict[str, Any]:
    """Values of the arguments that are given by their place."""
    values: dict[str, Any] = {}
    extra = [word for word in words if re.match(r"-[A-Za-z]\S*$", word)]  # -v
    rest = [word for word in words if word not in extra]
    for argument in (argument for argument in arguments if argument.positional):
        if rest or (argument.many and argument.default is dataclasses.MISSING):
            count = len(rest) if argument.many else 1
            values[argument.name] = _value(argument, rest[:count], command)
            rest = rest[count:]
        elif argument.default is dataclasses.MISSING:
            wanted = {"run": "a run", "one": "two runs", "two": "two runs"}.get(argument.name, argument.name.upper())
            example = re.search(rf"^ *(minigpt {command} .*)", kind.__doc__ or "", flags=re.M)
            more = f", for example: {example[1]}" if example else f"; see minigpt {command} --help"
            raise UserError(f"name {wanted}{more}")
    if text := " ".join(word for word in words if word in (*extra, *rest)):
        if any(argument.name == "prompt" for argument in arguments):
            raise UserError(f'no such argument: {text}; write --prompt "{text}"')
        raise UserError(f"{text}: one word too many; quote a path with spaces; see minigpt {command} --help")
    return values


def _value(argument: _Argument, words: list[str], command: str) -> Any:
    """The value that the words stand for. Raises UserError."""
    if argument.optional and words == ["None"]:
        return None
    if get_origin(argument.kind) is tuple:
        read = READERS.get(get_args(argument.kind)[0], str)
        return tuple(read(word) for word in words)
    kind, text = argument.kind, words[0]
    see = f"; see minigpt {command} --help"
    choices = ["True", "False"] if kind is bool else list(get_args(kind)) if get_origin(kind) is Literal else []
    if kind is bool and text.lower() in BOOLEANS:
        return text.lower() == "true"
    if choices:
        if text not in choices:
            *most, last = choices
            either = f"{', '.join(most)} or {last}" if most else last
            raise UserError(f"{argument.shown}: choose {either}, not {text or 'nothing'}{see}")
        return text
    try:
        if get_origin(kind) is dict:
            pairs = zip(words[::2], words[1::2], strict=True)
            return {key: float(number) for key, number in pairs}
        return READERS.get(kind, kind)(text)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}.get(kind, "texts, each with a number")
        raise UserError(f"{argument.shown}: give {wanted}, not {', '.join(map(repr, words))}{see}") from None


def _refuse_unknown(arguments: Sequence[_Argument], words: Sequence[str], sections: dict[str, Any]) -> None:
    known = {argument.flag for argument in arguments if not argument.positional} | {"--help", "-h"}
    known |= {
        f"--no-{argument.flag[2:]}" for argument in arguments if argument.kind is bool and argument.default is not False
    }
    for word in words:
        name = word.split("=")[0].replace("_", "-")
        if not name.startswith("--") or len(name) == 2 or name in known:
            continue
        choices = known | {
            f"--{section}.{field.replace('_', '-')}"
            for section, part in sections.items()
            for field in type(part.default).model_fields
        }
        if same := [choice for choice in sorted(choices) if "." in choice and choice.split(".")[-1] == name[2:]]:
            raise UserError(f"no such option: {name}; did you mean {same[0]}?")
        raise UserError(f"no such option: {name}; {nearest(name, sorted(choices))}")


def _sections(command: str) -> dict[str, Any]:
    """The sections of the config tree that a command takes, by name."""
    fields = RunConfig.model_fields
    hidden = () if command in ("finetune", "sweep") else ("finetune", "lora")
    return {name: field for name, field in fields.items() if name not in hidden}


def _print_help(kind: type, arguments: Sequence[_Argument], command: str, sections: dict[str, Any]) -> None:
    """Usage, description, one panel for the words, one for the flags, one for each section of the config."""
    places = [argument for argument in arguments if argument.positional]
    usage = ["[-h]", "[OPTIONS]"]
    for place in places:
        name = place.name.upper() + (" ..." if place.many else "")
        usage.append(name if place.default is dataclasses.MISSING else f"[{name}]")
    printer = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    printer.print(f"usage: minigpt {command} {' '.join(usage)}\n", soft_wrap=True)
    for paragraph in inspect.cleandoc(kind.__doc__ or "").split("\n\n"):
        examples = all("minigpt " in line for line in paragraph.split("\n"))
        printer.print(textwrap.indent(paragraph, "    " if examples else "") + "\n", soft_wrap=True)
    if places:
        rows = [(place.name.upper(), _choices(place), place.help, _default(place)) for place in places]
        printer.print(_panel("positional arguments", rows))
    rows = [("-h, --help", "", "Show this help and exit.", "")]
    for flag in (argument for argument in arguments if not argument.positional):
        spelled = f"--no-{flag.flag[2:]}" if flag.switch and flag.default is True else flag.flag
        rows.append((spelled, "" if flag.switch else metavar(flag.kind), flag.help, _default(flag)))
    printer.print(_panel("options", rows))
    for name, field in sections.items():
        rows = [
            (f"--{name}.{setting.replace('_', '-')}", metavar(without_none(info.annotation)[0]),
             info.description or "", _plain(getattr(field.default, setting)))
            for setting, info in type(field.default).model_fields.items()
        ]  # fmt: skip
        printer.print(_panel(f"{name} options", rows, type(field.default).__doc__ or ""))


def _panel(title: str, rows: Sequence[tuple[str, str, str, str]], about: str = "") -> Panel:
    """A frame of (flag, what it takes, help, default); a long flag stands on a line of its own."""
    parts: list[Any] = [Text(f"{inspect.cleandoc(about)}\n")] if about else []
    for name, takes, text, default in rows:
        head = Text.assemble((name, "bold"), " " if takes else "", (takes, "cyan"))
        told = Text(" ".join(text.split()))
        if default and "(default:" not in text:
            told.append(f" (default: {default})", "dim")
        grid = Table.grid(padding=(0, 2))
        if len(head) <= 24:
            grid.add_column(width=24, no_wrap=True)
            grid.add_column()
            grid.add_row(head, told)
        else:
            parts.append(head)
            grid.add_column(width=24)
            grid.add_column()
            grid.add_row("", told)
        parts.append(grid)
    return Panel(Group(*parts), title=Text(title), title_align="left")


def metavar(kind: Any) -> str:
    """What a flag takes: INT, {8,4}, STR [STR ...]."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) in (tuple, list):
        inner = metavar(get_args(kind)[0])
        return f"{inner} [{inner} ...]"
    if get_origin(kind) is dict:
        inner = " ".join(map(metavar, get_args(kind)))
        return f"{inner} [{inner} ...]"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(map(metavar, get_args(kind)))
    return "{True,False}" if kind is bool else kind.__name__.removesuffix("Text").upper()


def _choices(place: _Argument) -> str:
    return metavar(place.kind) if get_origin(place.kind) is Literal else ""


def _default(argument: _Argument) -> str:
    return "" if argument.switch or argument.default is dataclasses.MISSING else _plain(argument.default)


def _plain(value: Any) -> str:
    """A default as one writes it; "" for nothing."""
    if isinstance(value, (tuple, list)):
        return " ".join(map(str, value))
    return "" if value is None or value == {} else str(value)


def as_run(word: str, command: str) -> str:
    """The path of a run: my -> runs/my where only that is there. Raises UserError for a file that is none."""
    path, inside = Path(word), Path("runs", word)
    try:
        is_file, only_inside = path.is_file(), inside.exists() and not path.exists()
    except OSError:  # a path that the system refuses: loading it says why
        return word
    if is_file and not is_pointer(path):
        raise UserError(f"{word} is a file; a run is a directory, for example: minigpt {command} runs/my")
    return str(inside) if only_inside else word


def unreadable(file: str, error: Exception) -> UserError:
    """The error for a text file that the command cannot read."""
    return UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); give a UTF-8 text file")


def recipe_and_data(words: tuple[str, ...] | list[str]) -> tuple[str | None, str | None]:
    """Tell a recipe (.yaml, or a shipped recipe's name) from a data source among the positional words.

    Raises UserError for two of a kind.
    """
    recipe = data = None
    for word in words:
        is_recipe = word.endswith((".yaml", ".yml")) or (word in recipes() and not Path(word).exists())
        if (is_recipe and recipe) or (not is_recipe and data):
            what = "recipe" if is_recipe else "data source"
            raise UserError(f"{word}: one {what} is enough; quote a glob or a path with spaces; put files in a folder")
        recipe, data = (word, data) if is_recipe else (recipe, word)
    return recipe, data


def config_from(words: tuple[str, ...] | list[str], overrides: dict[str, Any]) -> tuple[RunConfig, str | None]:
    """The resolved config of positional words and flags, and the recipe's path."""
    recipe, data = recipe_and_data(words)
    path = str(find_recipe(recipe)) if recipe else None
    return load_config(path, overrides if data is None else {"data.source": data, **overrides}), path
