"""Find the files of the page by the names that browsers ask for. No name becomes a path.

The scripts and styles of `minigpt explain` are the same files.
"""

from pathlib import Path

from minigpt.explanation import html as pictures

FOLDER = Path(__file__).parents[1] / "page"
KINDS = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
SHARED = ("page.css", "tools.js", "pictures.js", "sections.html", "symbols.html")


def find_files() -> dict[str, Path]:
    """All files: {"main.js": ...}. Files of the explain page have names such as "explain/tools.js"."""
    own = {path.name: path for path in sorted(FOLDER.iterdir()) if path.suffix in KINDS}
    return own | {f"explain/{name}": pictures.FOLDER / name for name in SHARED}
