"""Show the API's document as one plain page, which loads no other file."""

from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>minigpt: the API</title></head><body>
<h1>minigpt: the API</h1>
<p>OpenAI's API over your own models. Any client of it works with the base URL <code>/v1</code> of this server.
The same as a document for programs: <a href="/openapi.json">openapi.json</a>.</p>
{paths}
<h2>What is asked and answered</h2>
{schemas}
</body></html>
"""


def documented(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document."""
    paths = [
        f"<h2><code>{escape(method.upper())} {escape(path)}</code></h2><p>{escape(found.get('description', ''))}</p>"
        f"<p>{_asked(found)}</p>"
        for path, methods in document["paths"].items()
        for method, found in methods.items()
    ]
    schemas = [_schema(name, found) for name, found in sorted(document["components"]["schemas"].items())]
    return PAGE.format(paths="\n".join(paths), schemas="\n".join(schemas))


def _asked(found: dict[str, Any]) -> str:
    schema = found.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
    return f"Asks for {_kind(schema)}." if schema else ""


def _schema(name: str, found: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(field)}</code></td><td>{_kind(about)}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for field, about in found.get("properties", {}).items()
    ]
    about = escape(found.get("description", ""))
    return f'<h3 id="{escape(name)}">{escape(name)}</h3><p>{about}</p><table>{"".join(rows)}</table>'


def _kind(about: dict[str, Any]) -> str:
    """A type in words, with a link if the page describes it."""
    if "$ref" in about:
        name = escape(about["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    if "anyOf" in about:
        return " or ".join(_kind(each) for each in about["anyOf"] if each.get("type") != "null")
    if "items" in about:
        return f"list of {_kind(about['items'])}"
    if "enum" in about or "const" in about:
        return escape(" or ".join(map(str, about.get("enum", [about.get("const")]))))
    return escape(about.get("type", "anything"))
