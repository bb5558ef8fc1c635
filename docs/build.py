"""Build the pages of the documentation site: docs/*.md with everything they include, and pages made from the code.

    python docs/build.py        writes build/docs; zensical turns it into a site (`make docs` does both)

A line of a page with only one of these is replaced:

    {{ source minigpt/model/loss.py next_token_loss }}      a function, class or method, as it stands in the code now
    {{ docstring minigpt/weights/checkpoint.py }}               a module's docstring
    {{ file recipes/demo.yaml }}                        a whole file
    {{ section CODEMAP.md The rooms}}                    the text under a heading

If something is missing, the error names page and line, so a page cannot differ from the code without notice.
"""

import ast
import contextlib
import io
import json
import os
import posixpath
import re
import shlex
import shutil
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import minigpt
from minigpt.cli import COMMANDS, main
from minigpt.config import RunConfig, recipes

ROOT = Path(__file__).parent.parent
DOCS, OUT = ROOT / "docs", ROOT / "build" / "docs"
TAKEN_IN = {"RESULTS.md": "results.md", "CONTRIBUTING.md": "contributing.md", "docs/LOG.md": "log.md"}
"""Files outside docs that become pages too."""
LANGUAGES = {".py": "python", ".yaml": "yaml", ".toml": "toml", ".sh": "sh"}

DIRECTIVE = re.compile(r"\{\{ (\w+) (.+) \}\}")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")


class PageError(Exception):
    """A page asks for something that does not exist."""


def expand(text: str, page: str) -> str:
    """A page with its directives replaced. Raises PageError."""
    lines = text.split("\n")
    for number, line in enumerate(lines):
        if not (found := DIRECTIVE.fullmatch(line.strip())):
            continue
        kind, words = found[1], shlex.split(found[2])
        try:
            made = DIRECTIVES[kind](words[0], " ".join(words[1:]), page)
        except (KeyError, OSError, PageError) as error:
            raise PageError(f"docs/{page}:{number + 1}: {line.strip()}: {error}") from None
        lines[number] = textwrap.indent(made, line[: len(line) - len(line.lstrip())])
    return "\n".join(lines)


def source(path: str, name: str, page: str) -> str:
    """The code of a function, class or Class.method, with its decorators, under its path and line numbers."""
    text = (ROOT / path).read_text(encoding="utf-8")
    scope: list[ast.stmt] = ast.parse(text).body
    node: ast.stmt | None = None
    for part in name.split("."):
        node = next((item for item in scope if _name(item) == part), None)
        if node is None:
            raise PageError(f"{path} has no {name}")
        scope = getattr(node, "body", [])
    assert node is not None and node.end_lineno
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(item.lineno for item in decorators)])
    code = textwrap.dedent("\n".join(text.split("\n")[first - 1 : node.end_lineno]))
    return _fence(code, "python", f"{path}, lines {first} to {node.end_lineno}")


def _name(node: ast.stmt) -> str | None:
    """The name that a statement defines: a function, a class, or a variable."""
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        return node.targets[0].id
    return getattr(node, "name", None)


def docstring(path: str, name: str, page: str) -> str:
    """The docstring of a module, unchanged."""
    text = ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8")))
    if not text:
        raise PageError(f"{path} has no docstring")
    return _fence(text, "text", path)


def file(path: str, name: str = "", page: str = "") -> str:
    """A whole file."""
    return _fence((ROOT / path).read_text(encoding="utf-8").rstrip(), LANGUAGES.get(Path(path).suffix, "text"), path)


def section(path: str, heading: str, page: str) -> str:
    """The text under a heading of a Markdown file, with its links adapted."""
    text = (ROOT / path).read_text(encoding="utf-8")
    found = re.search(rf"^(#+) {re.escape(heading)}\n(.*?)(?=^#{{1,6}} |\Z)", text, re.S | re.M)
    if not found:
        raise PageError(f"{path} has no heading {heading!r}")
    return relink(found[2].strip(), path, page)


DIRECTIVES = {"source": source, "docstring": docstring, "file": file, "section": section}


def _fence(text: str, language: str, title: str) -> str:
    return f'```{language} title="{title}"\n{text}\n```'


def relink(text: str, path: str, page: str) -> str:
    """The text of a file as part of a page. A link to a file without a page becomes plain words."""

    def one(link: re.Match[str]) -> str:
        picture, words, target = link.groups()
        target, _, anchor = target.partition("#")
        there = posixpath.normpath(posixpath.join(posixpath.dirname(path), target))
        if "://" in target or not target or not (ROOT / there).exists():
            return link[0]
        if there not in TAKEN_IN and not there.startswith("docs/"):
            return words if words.startswith("`") else f"`{there}`"
        there = posixpath.relpath(TAKEN_IN.get(there, there.removeprefix("docs/")), posixpath.dirname(page) or ".")
        return f"{picture}[{words}]({there}{'#' + anchor if anchor else ''})"

    return LINK.sub(one, text)


def shapes(text: str) -> str:
    """Write shapes in prose, [L][H], so that they are not read as links; these pages do not use
    `[words][reference]`.
    """
    parts = re.split(r"(^ *```.*?^ *```|`[^`\n]*`)", text, flags=re.S | re.M)
    return "".join(part if index % 2 else part.replace("][", "]\\[") for index, part in enumerate(parts))


@cache
def command_help(*words: str) -> str:
    """The output of `minigpt WORDS --help`, 100 columns wide."""
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")  # rich chooses the frame characters by the encoding
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    printed.seek(0)
    return printed.read()


def subcommands(command: str) -> list[str]:
    """["train", "inspect", "compare"] for `minigpt tokenizer`; [] for a command without subcommands."""
    found = re.search(rf"^usage: minigpt {command} ([a-z-]+(?:\|[a-z-]+)+)", command_help(command), re.M)
    return found[1].split("|") if found else []


def commands_page() -> Iterator[str]:
    """Every command's help."""
    yield "# Commands\n"
    yield "Made from `minigpt COMMAND --help`. Exit codes: 0 done, 1 failed, 2 a mistake that the message says how to"
    yield "fix. What starts with `--model.`, `--train.` and the like are [settings](settings.md).\n"
    for command, about in COMMANDS.items():
        yield f"## minigpt {command} {{#{command}}}\n\n{about[0].upper()}{about[1:]}.\n"
        for words in [(command,), *((command, sub) for sub in subcommands(command))]:
            if len(words) > 1:
                yield f"### minigpt {' '.join(words)} {{#{'-'.join(words)}}}\n"
            text, sections = plain_help(command_help(*words))
            yield f"```text\n{text}\n```\n"
            if sections:
                links = ", ".join(f"[{name}](settings.md#{name})" for name in sections)
                yield f"And the settings of {links}.\n"


def plain_help(text: str) -> tuple[str, list[str]]:
    """A command's help without its frames, and the names of its sections of settings, which another page describes."""
    kept: list[str] = []
    sections: list[str] = []
    inside = False
    for line in text.rstrip().split("\n"):
        if title := re.match(r"╭─ (.+?) ─*╮", line):
            name = title[1].removesuffix(" options")
            inside = name in RunConfig.model_fields
            if inside:
                sections.append(name)
            else:
                kept += ["", f"{title[1]}:"]
        elif line.startswith("╰"):
            inside = False
        elif line.startswith("│") and not inside:
            kept.append("  " + line.strip("│").strip("\n")[1:].rstrip())
        elif not inside:
            kept.append(line.rstrip())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(kept)).strip(), sections


def settings_page() -> Iterator[str]:
    """Every setting, from the config tree's docstrings."""
    yield "# Settings\n"
    yield "Made from `minigpt/config`. Each is a flag, `--train.max-steps 10`, and a line of a recipe:\n"
    yield "```yaml\ntrain:\n  max_steps: 10\n```\n"
    yield "`minigpt config show RECIPE` prints a recipe with all of them filled in. `minigpt config schema` prints the"
    yield "JSON Schema with which an editor completes and checks recipes. An unknown name or a wrong value is an"
    yield "error, which tells all mistakes at once, each with the nearest valid name.\n"
    for section, field in RunConfig.model_fields.items():
        kind = type(field.default)
        yield f"## {section} {{#{section}}}\n\n{cell(kind.__doc__ or '')}\n"
        if section in ("finetune", "lora"):
            yield "Only for `minigpt finetune`.\n"
        yield "| setting | values | default | what it does |\n|---|---|---|---|"
        for name, info in kind.model_fields.items():
            default = field.default.model_dump(mode="json")[name]
            row = [f"`{section}.{name}`{{ .name }}", values(info.annotation), f"`{json.dumps(default)}`"]
            yield f"| {' | '.join(row)} | {cell(info.description or '')} |"
        yield ""


def values(kind: Any) -> str:
    """What a setting takes: "`gpt2`, `modern`", "whole number or null"."""
    outer, inner = get_origin(kind), get_args(kind)
    if outer is Annotated:
        return values(inner[0])
    if outer is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if outer is tuple:
        return f"list of {values(inner[0])}"
    if outer is dict:
        return f"{values(inner[0])} to {values(inner[1])}"
    if inner:
        return " or ".join(values(one) for one in inner)
    return {bool: "true, false", int: "whole number", float: "number", str: "text", type(None): "null"}[kind]


def cell(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


def recipes_page() -> Iterator[str]:
    """The recipes, unchanged."""
    yield "# Recipes\n"
    yield "A recipe holds only what differs from the [defaults](settings.md). Train one by its name, change it by"
    yield "flags, or copy it: `minigpt train shakespeare-char --train.max-steps 500`."
    yield "`minigpt config recipes` lists them.\n"
    for name in recipes():
        yield f"## {name}\n\n{file(f'recipes/{name}.yaml')}\n"


def python_page() -> Iterator[str]:
    """The public API: minigpt.__all__, by mkdocstrings."""
    yield "# Python\n"
    yield "Everything in `minigpt.__all__`; the rest may change. Nothing is imported before it is used.\n"
    for name in minigpt.__all__:
        if not name.startswith("__"):
            yield f"::: minigpt.{name}\n"


GENERATED = {
    "reference/commands.md": commands_page,
    "reference/settings.md": settings_page,
    "reference/recipes.md": recipes_page,
    "reference/python.md": python_page,
}


def pages() -> dict[str, str]:
    """All pages by path, complete. Raises PageError."""
    found = {}
    for path in sorted(DOCS.rglob("*.md")):
        name = path.relative_to(DOCS).as_posix()
        if f"docs/{name}" not in TAKEN_IN:
            found[name] = expand(shapes(relink(path.read_text(encoding="utf-8"), f"docs/{name}", name)), name)
    for path, name in TAKEN_IN.items():
        found[name] = relink((ROOT / path).read_text(encoding="utf-8"), path, name)
    return found | {name: "\n".join(make()) for name, make in GENERATED.items()}


def build(out: Path = OUT) -> int:
    """Write all pages and their pictures into a new folder; returns the number of pages."""
    shutil.rmtree(out, ignore_errors=True)
    written = pages()
    for name, text in written.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(text, encoding="utf-8")
    for path in sorted(DOCS.rglob("*")):
        if path.suffix in (".css", ".svg", ".png"):
            (out / path.relative_to(DOCS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / path.relative_to(DOCS))
    return len(written)


os.environ["COLUMNS"] = "100"  # width of the help texts

if __name__ == "__main__":
    print(f"{OUT}: {build()} pages")
