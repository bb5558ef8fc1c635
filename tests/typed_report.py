"""Check that a `--json` report has exactly the keys and types of its TypedDict, and that the help names every key."""

import re
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest

from minigpt.cli import main


def check(kind: Any, value: Any, path: str = "report") -> None:
    """Check that the value has the given type at every depth: keys in order, rows of a list, values of a dict."""
    if is_typeddict(kind):
        assert list(value) == list(get_type_hints(kind)), path
        for name, inner in get_type_hints(kind).items():
            check(inner, value[name], f"{path}.{name}")
    elif isinstance(kind, UnionType):
        [inner] = [one for one in get_args(kind) if one is not NoneType]
        if value is not None:
            check(inner, value, path)
    elif get_origin(kind) is list:
        assert isinstance(value, list), path
        assert value or not is_typeddict(get_args(kind)[0]), f"{path} has no rows"
        for row in value:
            check(get_args(kind)[0], row, path)
    elif get_origin(kind) is dict:
        for name, inner in value.items():
            check(get_args(kind)[1], inner, f"{path}.{name}")
    elif kind is not Any:
        assert isinstance(value, (int, float) if kind is float else kind), path


def keys(kind: Any) -> set[str]:
    """Every key of a TypedDict, and of those inside it."""
    hints = get_type_hints(kind) if is_typeddict(kind) else {}
    parts = hints.values() if hints else get_args(kind)
    return set(hints).union(*(keys(part) for part in parts))


def words_of_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> set[str]:
    """The words that `minigpt COMMAND --help` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        main([*command, "--help"])
    return set(re.findall(r"\w+", capsys.readouterr().out))
