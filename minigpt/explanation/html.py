"""An explanation as one HTML page that needs nothing else: style, script and numbers stand in it.

The page is page/page.html, page.css, tools.js and page.js; the scripts draw what they find in the JSON. To keep the
page small, attention is packed into a byte a weight: 100 kB for 64 tokens, 6 layers and 6 heads.
"""

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).with_name("page")


def make_page(explanation: dict[str, Any], note: str = "") -> str:
    """The page of an object of `explain`, with a note below its title.

    A text may hold anything, `</script>` too: it stays text.
    """
    data = explanation | {"attention": pack_attention(explanation["attention"])}
    parts = {
        "title": html.escape(f"{explanation['run'] or 'model'}: {''.join(explanation['texts'])[:60]}"),
        "note": html.escape(note),
        "style": read("page.css"),
        "symbols": read("symbols.html"),
        "sections": read("sections.html"),
        "tools": read("tools.js"),
        "pictures": read("pictures.js"),
        "script": read("page.js"),
        "data": json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], read("page.html"))


def pack_attention(attention: list[list[list[list[float]]]]) -> str:
    """Base64 of weights 0 to 1 as bytes 0 to 255: for each layer, head and row t the t + 1 weights."""
    weights = [weight for layer in attention for head in layer for row in head for weight in row]
    return base64.b64encode(np.round(np.array(weights) * 255).astype(np.uint8).tobytes()).decode()


def read(name: str) -> str:
    """The text of a part of the page, without line ends behind it."""
    return (FOLDER / name).read_text(encoding="utf-8").rstrip("\n")
