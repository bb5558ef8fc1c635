"""Parse a command's words into its dataclass, and print its help from the docstrings of the same dataclass.

    @dataclass(frozen=True)
    class Export:
        '''What the command does, then examples.'''
        run: Positional[str]
        '''Help of the argument.'''
        max_len: int | None = None
        '''Help of --max-len.'''

A field is a positional word or a flag. Its type says which words it takes: str, PathText (~ is the home folder), Name,
int, float, Path, bool (`--json`, or `--no-plot` if the default is True; true or false may follow), Literal,
tuple[str, ...] (one or more words), dict[str, float] (pairs of words), or one of these or None.
`split_flags` takes the config flags (--train.max-steps 10) out first.
"""

import dataclasses
import os
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from minigpt import torchrun
from minigpt.cli.fields import Argument, arguments_of
from minigpt.cli.help import config_sections, print_help
from minigpt.console import tell
from minigpt.errors import UserError, nearest
from minigpt.files import expand_home
from minigpt.layout import check_name, is_pointer

if TYPE_CHECKING:
    from minigpt.config import RunConfig

Args = TypeVar("Args")
Kind = TypeVar("Kind")
Positional = Annotated[Kind, "positional"]
"""The type of an argument that is given by its position."""


class PathText(str):
    """The path of a file or folder, the name of a data set or recipe, or - for standard input; ~ is the home folder."""


class Name(str):
    """The name of a run to make; a name cannot lead out of the folder of the runs."""


READERS: dict[Any, Callable[[str], Any]] = {
    PathText: expand_home,
    Path: lambda word: Path(expand_home(word)),
    Name: check_name,
}
"""Functions that turn a word into a value, for types that cannot be called with the word."""

RUNS = ("run", "runs", "one", "two", "draft", "ensemble")
"""Arguments that name runs. A flag with several runs also takes them separated by commas."""


def parse(kind: type[Args], argv: list[str], command: str, with_config: bool = False) -> tuple[Args, dict[str, Any]]:
    """Parse a command's arguments; the help is the docstrings of the dataclass and its fields.

    Args:
        kind: a dataclass.
        argv: without the command's name.
        command: "train", for the usage line.
        with_config: also take the settings of the config tree (--train.max-steps 10), and list them in the help.

    Returns:
        (arguments, config overrides by dotted path).

    Raises:
        UserError: one line for what cannot be understood.
        SystemExit: after --help.
    """
    overrides, words = {}, list(argv)
    if with_config:
        # imported here, as in all of this file, because other commands' help needs no config
        from minigpt.config import split_flags

        overrides, words = split_flags(argv)
    last = words.index("--") if "--" in words else len(words)
    words, after = words[:last], words[last + 1 :]
    arguments = list(arguments_of(kind))
    sections = config_sections(command) if with_config else {}
    _refuse_unknown(arguments, words, sections, command)
    if {"-h", "--help"} & set(words):
        print_help(kind, arguments, command, sections, words)
        raise SystemExit(0)
    given, places = _flags(arguments, words, command)
    given |= _positionals(kind, arguments, places, after, command)
    for name in RUNS:
        if isinstance(word := given.get(name), str):
            given[name] = as_run(word, command)
        elif isinstance(word, tuple):
            given[name] = tuple(as_run(each, command) for each in word)
    if "logging.name" in overrides and "name" in [argument.name for argument in arguments]:  # the same as --name
        given["name"] = with_word(overrides, "logging.name", given.get("name"))["logging.name"]
    return kind(**given), overrides


def _flags(arguments: Sequence[Argument], words: Sequence[str], command: str) -> tuple[dict[str, Any], list[str]]:
    """Split the words into (values of the flags by name, the other words)."""
    flags = {argument.flag: argument for argument in arguments if not argument.positional}
    values: dict[str, Any] = {}
    rest: list[str] = []
    queue = list(words)
    while queue:
        word = queue.pop(0)
        name, equals, text = word.partition("=")
        name = name.replace("_", "-")
        if not word.startswith("--"):
            rest.append(word)
            continue
        argument = flags.get(name) or flags[f"--{name[5:]}"]  # --no-plot sets plot to False
        taken = [text] if equals else []
        while not equals and queue and _takes(argument, taken, queue[0]):
            taken.append(queue.pop(0))
        if not taken and argument.kind is bool:
            taken = ["True"]
        if not taken:
            raise UserError(f"{name}: needs a value; write {name} VALUE")
        value = _value(argument, taken, command)
        if argument.many and value and (earlier := values.get(argument.name)):  # a repeated flag adds values
            value = earlier | value if isinstance(value, dict) else earlier + value
        values[argument.name] = value if name == argument.flag or value is None else not value
    return values, rest


def _takes(argument: Argument, taken: Sequence[str], word: str) -> bool:
    """Whether the next word is a value of the flag. A switch takes only true, false and the like."""
    if argument.switch:
        from minigpt.config.load import SWITCH_VALUES

        return not taken and word.lower() in SWITCH_VALUES
    return not word.startswith("--") and (argument.many or not taken)


def _positionals(
    kind: type, arguments: Sequence[Argument], words: list[str], after: list[str], command: str
) -> dict[str, Any]:
    """Values of the arguments that are given by their position. `after`: the words after --, which are never flags."""
    values: dict[str, Any] = {}
    extra = [word for word in words if re.match(r"-[A-Za-z]\S*$", word)]  # -v
    rest = [word for word in words if word not in extra] + after
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
    if text := " ".join(word for word in (*words, *after) if word in (*extra, *rest)):
        if any(argument.name == "prompt" for argument in arguments):
            raise UserError(f'no such argument: {text}; write --prompt "{text}"')
        fix = f"write a file of that name as ./{extra[0]}" if extra else "quote a path with spaces"
        raise UserError(f"{text}: one word too many; {fix}; see minigpt {command} --help")
    return values


def _value(argument: Argument, words: list[str], command: str) -> Any:
    """Turn the words into the value of an argument. Raises UserError."""
    if argument.optional and words == ["None"] and not _is_text(argument):
        return None
    if get_origin(argument.kind) is tuple:
        read = READERS.get(get_args(argument.kind)[0], str)
        if argument.name in RUNS and not argument.positional:
            words = [name for word in words for name in split_runs(word)]
        return tuple(read(word) for word in words)
    kind, text = argument.kind, words[0]
    see = f"; see minigpt {command} --help"
    choices = ["True", "False"] if kind is bool else list(get_args(kind)) if get_origin(kind) is Literal else []
    if kind is bool and text.lower() in ("true", "false"):  # --json true, --plot=False
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


def _is_text(argument: Argument) -> bool:
    """Whether its values are texts, of which every word is one."""
    return argument.kind is str or get_origin(argument.kind) is tuple


def _refuse_unknown(
    arguments: Sequence[Argument], words: Sequence[str], sections: dict[str, Any], command: str
) -> None:
    known = {argument.flag for argument in arguments if not argument.positional} | {"--help", "-h"}
    known |= {
        f"--no-{argument.flag[2:]}" for argument in arguments if argument.kind is bool and argument.default is not False
    }
    texts = {argument.flag for argument in arguments if _is_text(argument)}
    for before, word in zip(["", *words], words, strict=False):
        name = word.split("=")[0].replace("_", "-")
        if not name.startswith("--") or name in known:
            continue
        choices = known | {
            f"--{section}.{field.replace('_', '-')}"
            for section, part in sections.items()
            for field in type(part.default).model_fields
        }
        if same := [choice for choice in sorted(choices) if "." in choice and choice.split(".")[-1] == name[2:]]:
            raise UserError(f"no such option: {name}; did you mean {same[0]}?")
        value = f"; as the value of {before}: {before}={shlex.quote(word)}" if before in texts else ""
        hint = nearest(name, sorted(choices), f"see minigpt {command} --help")
        raise UserError(f"no such option: {name}; {hint}{value}")


def refuse(args: Any, names: Sequence[str], why: str) -> None:
    """Raise UserError if one of these flags is given. `why` ends the message: "only with --tasks; leave it out"."""
    unset = {field.name: field.default for field in dataclasses.fields(args)}
    if given := [name for name in names if getattr(args, name) != unset[name]]:
        raise UserError(f"{' and '.join('--' + name.replace('_', '-') for name in given)}: {why}")


def as_run(word: str, command: str) -> str:
    """The path of a run: my -> runs/my if only that exists; the whole path for . and .. Raises UserError for a file."""
    path, inside = Path(word), Path("runs", word)
    try:
        is_file, only_inside = path.is_file(), inside.exists() and not path.exists()
    except OSError:  # a path that the system refuses: loading it will say why
        return word
    if is_file and not is_pointer(path):
        raise UserError(f"{word} is a file; a run is a directory, for example: minigpt {command} runs/my")
    if path.name in ("", ".."):  # the run's name is needed: for titles, and for what is written next to it
        return str(path.resolve())
    return str(inside) if only_inside else word


def split_runs(word: str) -> list[str]:
    """split_runs("a,b") -> ["a", "b"]; a path that exists keeps its commas, also if it is in runs/."""
    from minigpt.config.section import names

    is_path = any(os.path.lexists(path) for path in (expand_home(word), Path("runs", word)))
    return [word] if is_path else names(word) or [word]


def unreadable(file: str, error: Exception) -> UserError:
    """The error for a text file that the command cannot read."""
    return UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); give a UTF-8 text file")


def recipe_and_data(words: tuple[str, ...] | list[str]) -> tuple[str | None, str | None]:
    """Tell a recipe (.yaml, or a shipped recipe's name) from a data source among the positional words.

    Raises UserError for two recipes or two data sources.
    """
    from minigpt.config import recipes

    recipe = data = None
    for word in words:
        is_recipe = word.endswith((".yaml", ".yml")) or (word in recipes() and not Path(word).exists())
        if (is_recipe and recipe) or (not is_recipe and data):
            what = "recipe" if is_recipe else "data source"
            raise UserError(f"{word}: one {what} is enough; quote a glob or a path with spaces; put files in a folder")
        recipe, data = (word, data) if is_recipe else (recipe, word)
    return recipe, data


def config_from(words: tuple[str, ...] | list[str], overrides: dict[str, Any]) -> "tuple[RunConfig, str | None]":
    """The resolved config of positional words and flags, and the recipe's path."""
    from minigpt.config import find_recipe, load_config

    recipe, data = recipe_and_data(words)
    path = str(find_recipe(recipe)) if recipe else None
    return load_config(path, with_word(overrides, "data.source", data)), path


def tell_unused(config: "RunConfig", recipe: str | None, overrides: dict[str, Any]) -> None:
    """Print a line for each setting that a person wrote and that has no effect; only in the first of several ranks."""
    from minigpt.config.unused import without_effect, written

    if not torchrun.rank():
        for line in without_effect(config, written(recipe, overrides)).values():
            tell(line)


def with_word(settings: dict[str, Any], path: str, word: str | None) -> dict[str, Any]:
    """The settings, and the one that a positional word gives. Raises UserError if a flag gives it another value."""
    if word is None:
        return settings
    if settings.get(path, word) != word:
        flag = f"--{path.replace('_', '-')}"
        raise UserError(f"{word} and {flag} {settings[path]} say different things; leave one of them out")
    return {**settings, path: word}
