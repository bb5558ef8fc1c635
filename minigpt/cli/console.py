"""What commands share: arguments, the console for messages (stderr), and results (stdout)."""

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro
from rich.console import Console

from minigpt.config import RunConfig, find_recipe, load_config, recipes, split_flags
from minigpt.errors import UserError, nearest
from minigpt.layout import is_pointer

if TYPE_CHECKING:
    from minigpt.runs.train import TrainedRun

Args = TypeVar("Args")
console = Console(stderr=True, soft_wrap=True)


def out(text: str) -> None:
    """Print a result."""
    sys.stdout.write(text if text.endswith("\n") else text + "\n")


def out_json(value: Mapping[str, Any]) -> None:
    """Print one JSON object."""
    out(json.dumps(value, ensure_ascii=False, indent=2))


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
    """
    overrides, rest = split_flags(argv) if with_config else ({}, list(argv))
    _refuse_unknown(kind, rest, _sections(command) if with_config else {})
    shown: Any = kind
    if with_config and {"-h", "--help"} & set(rest):
        tree = [
            (name, Annotated[type(field.default), tyro.conf.FlagConversionOff], field.default)
            for name, field in _sections(command).items()
        ]
        shown = dataclasses.make_dataclass(kind.__name__, tree, bases=(kind,), frozen=True)
    messages = io.StringIO()
    try:
        with contextlib.redirect_stderr(messages):
            parsed = tyro.cli(
                shown,
                args=rest,
                prog=f"minigpt {command}",
                description=kind.__doc__,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.PositionalMetavarFromFieldName),
            )
    except SystemExit as ended:
        if not ended.code:
            raise
        raise UserError(_plainly(messages.getvalue(), kind, command, rest)) from None
    runs = {name: getattr(parsed, name) for name in _RUNS if hasattr(parsed, name)}
    found: dict[str, Any] = {
        name: tuple(as_run(word, command) for word in given) if isinstance(given, tuple) else as_run(given, command)
        for name, given in runs.items()
        if given is not None
    }
    return dataclasses.replace(parsed, **found), overrides


_RUNS = ("run", "runs", "one", "two", "draft")
"""Arguments that name runs."""


def as_run(word: str, command: str) -> str:
    """The path of a run: my -> runs/my where only that is there. Raises UserError for a file that is none."""
    path = Path(word)
    if path.is_file() and not is_pointer(path):
        raise UserError(f"{word} is a file; a run is a directory, for example: minigpt {command} runs/my")
    inside = Path("runs", word)
    return str(inside) if inside.exists() and not path.exists() else word


_KINDS = {"INT": "a whole number", "FLOAT": "a number", "{[STR FLOAT [STR FLOAT ...]]}": "texts, each with a number"}


def _plainly(box: str, kind: Any, command: str, argv: list[str]) -> str:
    """tyro's box of complaints as one line: "--num-beams: give a whole number, not 'x'"."""
    see = f"; see minigpt {command} --help"
    words = re.sub(r"[│╭╮╰╯─]+|-{9,}", " ", box)
    words = re.sub(r"Argument helptext.*|For full helptext.*", "", words, flags=re.S)
    words = re.sub(r"\s+", " ", words).removeprefix(" Value error ").strip()
    wrong = re.search(r"Error parsing (--\S+): no type matching {None}\|(.+?) could be .*? from \[(.*?)\]", words)
    if wrong:
        flag, wanted, given = wrong.groups()
        return f"{flag}: give {_KINDS.get(wanted, wanted)}, not {given}{see}"
    if wrong := re.search(r"invalid choice '(.*)' for argument '(\S+)'\. Expected one of \((.*?)\)", words):
        given, name, choices = wrong.groups()
        choices = re.sub(r", ([^,]+)$", r" or \1", choices.replace("'", ""))
        return f"{name if name[0] == '-' else name.upper()}: choose {choices}, not {given}{see}"
    if wrong := re.search(r"Missing value for argument '(\S+)'", words):
        return f"{wrong[1]}: needs a value; write {wrong[1]} VALUE"
    if wrong := re.search(rf"Missing from minigpt {command}: (\w+)", words):
        wanted = {"RUN": "a run", "ONE": "two runs", "TWO": "two runs"}.get(wrong[1], wrong[1])
        example = re.search(rf"^ *(minigpt {command} .*)", kind.__doc__ or "", flags=re.M)
        return f"name {wanted}, for example: {example[1]}" if example else f"name {wanted}{see}"
    if wrong := re.search(r"Unrecognized options: (.*)", words):
        spans = (argv[first:end] for first in range(len(argv)) for end in range(first + 1, len(argv) + 1))
        text = next((" ".join(span) for span in spans if ", ".join(span).split() == wrong[1].split()), wrong[1])
        if any(field.name == "prompt" for field in dataclasses.fields(kind)):
            return f'no such argument: {text}; write --prompt "{text}"'
        return f"{text}: one word too many; quote a path with spaces{see}"
    return words + see


def unreadable(file: str, error: Exception) -> UserError:
    """The error for a text file that the command cannot read."""
    return UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); give a UTF-8 text file")


def _sections(command: str) -> dict[str, Any]:
    """The sections of the config tree that a command takes, by name."""
    fields = RunConfig.model_fields
    hidden = () if command in ("finetune", "sweep") else ("finetune", "lora")
    return {name: field for name, field in fields.items() if name not in hidden}


def _refuse_unknown(kind: Any, words: list[str], sections: dict[str, Any]) -> None:
    flags = {f"--{field.name.replace('_', '-')}": field for field in dataclasses.fields(kind)}
    switches = {name for name, field in flags.items() if field.default is True}
    known = set(flags) | {f"--no-{name[2:]}" for name in switches} | {"--help", "-h"}
    for word in words:
        name = word.split("=")[0].replace("_", "-")
        if name.startswith("--") and len(name) > 2 and name not in known:
            choices = set(known)
            if sections:
                choices |= {
                    f"--{section}.{field.replace('_', '-')}"
                    for section, part in sections.items()
                    for field in type(part.default).model_fields
                }
                same = [choice for choice in sorted(choices) if choice.split(".")[-1] == name[2:]]
                if same:
                    raise UserError(f"no such option: {name}; did you mean {same[0]}?")
            raise UserError(f"no such option: {name}; {nearest(name, sorted(choices))}")


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


def report_run(run: "TrainedRun", json: bool) -> int:
    """Print where a run is, or one JSON object of how it ended; the exit code."""
    state = run.state
    if run.rank:  # the first of several ranks prints for all
        return 0 if not state.stop_reason.startswith("interrupted") else 143
    if json:
        out_json(
            {
                "run": str(run.path),
                "step": state.step,
                "seconds": round(state.seconds, 3),
                "stop_reason": state.stop_reason,
                "val_loss": state.val_loss,
                "best_loss": state.best_loss,
                "best_step": state.best_step,
                "epochs": run.epochs,
            }
        )
    else:
        out(str(run.path))
    stopped = state.stop_reason.startswith("interrupted")
    if not json and not stopped:
        prompt = run.config.train.sample_prompt.strip() or "Once upon a time"
        console.print(
            f'Next: minigpt generate {run.path} --prompt "{prompt}"\n'
            f"      minigpt eval {run.path}, minigpt explain {run.path}, minigpt chat {run.path}",
            markup=False, highlight=False,
        )  # fmt: skip
    if stopped:
        console.print("saved; the same command continues")
        return 130 if "SIGINT" in state.stop_reason else 143
    return 0
