"""Read the arguments of a command from its dataclass: each field's type, default and docstring."""

import ast
import dataclasses
import inspect
import itertools
import textwrap
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclasses.dataclass(frozen=True)
class Argument:
    """A field: `kind` is its type without None."""

    name: str
    kind: Any
    positional: bool
    optional: bool
    default: Any
    help: str
    is_setting: bool = False  # a setting of generation, listed among the command's own

    @property
    def flag(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def switch(self) -> bool:
        """Whether it takes no value."""
        return self.kind is bool and not self.optional

    @property
    def shown(self) -> str:
        """Its name in messages."""
        return self.name.upper() if self.positional else self.flag

    @property
    def many(self) -> bool:
        """Whether it takes all words up to the next flag."""
        return get_origin(self.kind) in (tuple, dict)


def arguments_of(kind: type) -> Iterator[Argument]:
    """The arguments of a dataclass, in order."""
    texts: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        texts |= _docstrings(base)
    hints = get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):  # pyright: ignore[reportArgumentType]
        hint = hints[field.name]
        positional = get_origin(hint) is Annotated and "positional" in get_args(hint)[1:]
        inner, optional = without_none(hint)
        setting = field.metadata.get("help")
        text = " ".join((setting or texts.get(field.name, "")).split())
        yield Argument(field.name, inner, positional, optional, field.default, text, setting is not None)


def _docstrings(kind: type) -> dict[str, str]:
    """The string below each field of a class, by the field's name; empty for a class without source."""
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
    """(int, True) for int | None; (int, False) for int. Annotations are removed."""
    if get_origin(hint) is Annotated:
        hint = get_args(hint)[0]
    if get_origin(hint) not in (Union, types.UnionType):
        return hint, False
    rest = [part for part in get_args(hint) if part is not type(None)]
    inner = Union[tuple(rest)]  # noqa: UP007  as many as there are
    return (get_args(inner)[0] if get_origin(inner) is Annotated else inner), len(rest) < len(get_args(hint))


def metavar(kind: Any) -> str:
    """The word in the usage line for what a flag takes: INT, {8,4}, STR [STR ...]."""
    if get_origin(kind) is Annotated:
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return f"{{{','.join(map(str, get_args(kind)))}}}"
    if get_origin(kind) in (tuple, list):
        inner = metavar(get_args(kind)[0])
        return f"{inner} ..." if inner.startswith("{") else f"{inner} [{inner} ...]"
    if get_origin(kind) is dict:
        inner = " ".join(map(metavar, get_args(kind)))
        return f"{inner} [{inner} ...]"
    if get_origin(kind) in (Union, types.UnionType):
        return "|".join(map(metavar, get_args(kind)))
    return "{True,False}" if kind is bool else kind.__name__.removesuffix("Text").upper()
