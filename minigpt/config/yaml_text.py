"""YAML as people write settings: YAML 1.2's numbers and booleans, and nothing that can surprise.

YAML 1.1, which PyYAML reads, takes `on` for true, `1:30` for 90, `010` for 8 and 1e-3 for a word. Here only true and
false are booleans, and such words stay words. A key that is given twice is an error; aliases (*name) and tags (!!name)
are not read, and size and depth are limited: a text from a stranger takes neither time nor memory.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from minigpt.errors import ConfigError, first_line

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
"""What a plain word must look like to be no text, and the letters that it can begin with."""


class _Loader(yaml.SafeLoader):
    """Reads a text as the docstring of this file says."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  the name and the shape are PyYAML's
    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A value and all that is in it."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _problem("aliases such as *name are not read; write the value again", event)
        if getattr(event, "tag", None) not in (None, "!"):
            raise _problem("tags such as !!name are not read; leave it out", event)
        if self.depth == MAX_DEPTH:
            raise _problem(f"nested deeper than {MAX_DEPTH}", event)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """A mapping whose keys are all different."""
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


def _problem(text: str, place: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=text, problem_mark=place.start_mark)


def _number(loader: _Loader, node: Any) -> int | float:
    text = str(loader.construct_scalar(node)).replace("_", "").lower()
    try:
        if node.tag.endswith("float"):
            return float(text.replace(".inf", "inf").replace(".nan", "nan"))
        return int(text, 0 if re.match(r"[-+]?0[xb]", text) else 10)
    except ValueError as error:
        raise _problem(f"not a number ({first_line(error)})", node) from None


class _Dumper(yaml.SafeDumper):
    """Writes what the loader reads: no aliases, and quotes around all that it would take for a number."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always."""
        return True


for _kind, (_pattern, _first) in _PATTERNS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(_TAG + _kind, re.compile(rf"(?:{_pattern})\Z"), list(_first))
for _kind in ("int", "float"):
    _Loader.add_constructor(_TAG + _kind, _number)


def parse_yaml(text: str, name: str = "the YAML text") -> Any:
    """Read YAML, where 1e-3 is a number. Raises ConfigError with line and column."""
    if len(text) > MAX_LETTERS:
        raise ConfigError(f"{name}: longer than the {MAX_LETTERS:,} characters that settings may have")
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or first_line(error)
        raise ConfigError(f"{name}{where}: not valid YAML ({problem[:200]})") from None


def read_yaml(path: Path) -> Any:
    """Read a file of YAML. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            return parse_yaml(file.read(4 * MAX_LETTERS + 1).decode(), str(path))  # up to 4 bytes a letter
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def dump_yaml(tree: Any) -> str:
    """YAML that `parse_yaml` reads back to an equal tree."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, allow_unicode=True)
