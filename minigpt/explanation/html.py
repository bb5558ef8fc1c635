"""Write an explanation as one HTML page that contains its style, its scripts and its numbers.

The page is made of the files in page/; the scripts draw the numbers, which are JSON. To keep the page small, attention
is packed into one byte per weight: 100 kB for 64 tokens, 6 layers and 6 heads.
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
    """Make the page of an object returned by `explain`, with a note below its title.

    Any text is safe, even `</script>`: it is shown as text.
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
    """Encode weights 0 to 1 as bytes 0 to 255 in Base64: for each layer, head and row t the t + 1 weights."""
    weights = [weight for layer in attention for head in layer for row in head for weight in row]
    return base64.b64encode(np.round(np.array(weights) * 255).astype(np.uint8).tobytes()).decode()


def read(name: str) -> str:
    """Read a part of the page, without line ends at its end."""
    return (FOLDER / name).read_text(encoding="utf-8").rstrip("\n")
