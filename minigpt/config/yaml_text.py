"""Read and write settings as YAML, with the numbers and booleans of YAML 1.2.

PyYAML reads YAML 1.1, where `on` is true, `1:30` is 90, `010` is 8 and 1e-3 is a text. Here only true and false are
booleans, 1e-3 is a number, and `on` and `1:30` are texts. A key that is given twice is an error. Aliases (*name) and
tags (!!name) are errors, and size and depth are limited, so that no text can use much time or memory.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from minigpt.errors import ConfigError, first_line

_Parser: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The parser in C, ten times faster, where PyYAML was built with it."""

MAX_LETTERS, MAX_DEPTH = 100_000, 20

_TAG = "tag:yaml.org,2002:"
_PATTERNS = {
    "bool": (r"[Tt]rue|[Ff]alse", "tTfF"),
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "int": (r"[-+]?(0[xX][\da-fA-F_]+|0[bB][01_]+|\d[\d_]*)", "-+0123456789"),
    "float": (
        r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
}
"""Type to (the pattern of its words, the characters they can begin with); any other plain word is a text."""


class _Loader(_Parser):
    """Reads YAML as this file's docstring says."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  the name and the shape are PyYAML's

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """Read a mapping; a repeated key is an error."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode):
                raise _problem("a key must be a plain word", key)
            if key.value in lines:
                where = f"lines {lines[key.value]} and {line}"
                raise _problem(f"{key.value} is given twice, in {where}; keep one of them", key)
            lines[key.value] = line
        return super().construct_mapping(node, deep)


def _check_nesting(text: str) -> None:
    """Raise YAMLError for an alias, a tag, or a value that is too deep, before anything is built."""
    depth = 0
    for event in yaml.parse(text, Loader=_Parser):
        if isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        elif isinstance(event, yaml.AliasEvent):
            raise _problem("aliases such as *name are not allowed; write the value again", event)
        elif isinstance(event, yaml.NodeEvent):
            if getattr(event, "tag", None) not in (None, "!"):
                raise _problem("tags such as !!name are not allowed; leave it out", event)
            if depth == MAX_DEPTH:
                raise _problem(f"nested deeper than {MAX_DEPTH}", event)
            depth += isinstance(event, yaml.CollectionStartEvent)


def _problem(text: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)


def _number(loader: _Loader, node: Any) -> int | float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    try:
        if node.tag.endswith("float"):
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        number = int(text, 0 if re.match(r"[-+]?0[xb]", text) else 10)
        str(number)  # an error could not show more than 4300 digits; int() itself lets 0x... have more
        return number
    except ValueError as error:
        raise _problem(f"not a number ({first_line(error)})", node) from None


class _Dumper(yaml.SafeDumper):
    """Writes YAML that the loader reads back: no aliases, and quotes around texts that look like numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True for every value, so no aliases are written."""
        return True


for _kind, (_pattern, _first) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))
for _kind in ("int", "float"):
    _Loader.add_constructor(_TAG + _kind, _number)


def parse_yaml(text: str, name: str = "the YAML text") -> Any:
    """Read YAML, where 1e-3 is a number. Raises ConfigError with line and column."""
    if len(text) > MAX_LETTERS:
        raise ConfigError(f"{name}: settings are longer than {MAX_LETTERS:,} characters")
    try:
        _check_nesting(text)
        return yaml.load(text, Loader=_Loader)
    except UnicodeEncodeError:  # half of a surrogate pair
        raise ConfigError(f"{name}: not valid YAML (special characters are not allowed)") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = str(getattr(error, "problem", None) or first_line(error))
        problem = problem.replace("start any token", "start a value: a tab, or a text that needs quotes")
        raise ConfigError(f"{name}{where}: not valid YAML ({problem[:200]})") from None


def read_yaml(path: Path) -> Any:
    """Read a file of YAML. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return parse_yaml(file.read(4 * MAX_LETTERS + 1).decode(), str(path))  # a character has up to 4 bytes
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def comment(text: str) -> str:
    """A comment of one line. A line end, which a path may have, becomes \\n, so that no setting follows it."""
    return "# " + "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text) + "\n"


def dump_yaml(tree: Any) -> str:
    """YAML that `parse_yaml` reads back to an equal tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
