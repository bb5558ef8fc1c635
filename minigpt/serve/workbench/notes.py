"""Keep a person's notes about a run in note.json in the run's folder, so that they move with the run."""

import json
from typing import Any

from minigpt.files import delete_file, parse_json, write_text
from minigpt.layout import RunFolder
from minigpt.runs.lock import PERMISSIONS


def read_note(folder: RunFolder) -> dict[str, Any]:
    """{"note": text, "star": bool}; a damaged file counts as empty."""
    try:
        found = parse_json(folder.note.read_bytes())
        return {"note": str(found["note"]), "star": bool(found["star"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {"note": "", "star": False}


def write_note(folder: RunFolder, note: str, star: bool) -> None:
    """Save a note; an empty one leaves no file. Raises StorageError."""
    if note or star:
        text = json.dumps({"note": note, "star": star}, ensure_ascii=False) + "\n"
        write_text(folder.note, text, PERMISSIONS)
    else:
        delete_file(folder.note, PERMISSIONS)
