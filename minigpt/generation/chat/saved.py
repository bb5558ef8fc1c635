"""Save a conversation as a JSON file that a person can read and edit, and load it again.

{"format": 1, "run": "runs/my", "messages": [{"role": "user", "content": ...}, ...], "settings": {...}, "answers": 3}
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from minigpt.errors import GenerationError, storage_error
from minigpt.files import find, parse_json, read_text, write_text
from minigpt.generation.chat.conversation import Message
from minigpt.generation.chat.session import Session
from minigpt.tokenizers.base import valid_unicode
from minigpt.tokenizers.chat_template import ROLES

FORMAT = 1


def is_there(path: Path) -> bool:
    """Whether a file with this name exists. Raises StorageError if the system does not accept the name."""
    try:
        return find(path) is not None
    except OSError as error:
        raise storage_error(path, error, "choose another file") from None


def save_session(path: Path, session: Session, run: str = "") -> None:
    """Write the session to a file, completely or not at all. An older saved chat is replaced.

    Raises:
        StorageError: the file cannot be written.
        GenerationError: the file exists and is not a saved chat.
    """
    if is_there(path):
        try:
            _read(path)
        except GenerationError:
            raise GenerationError(f"{path} exists and is not a saved chat; choose another name") from None
    tree = {
        "format": FORMAT,
        "run": run,
        "messages": [asdict(message) for message in session.messages],
        "settings": session.config.model_dump(mode="json"),
        "answers": session.answers,
    }
    write_text(path, json.dumps(tree, ensure_ascii=False, indent=2) + "\n", "choose another file")


def load_session(path: Path, session: Session) -> None:
    """Continue the session from a file. Raises GenerationError or ConfigError, and then changes nothing."""
    tree = _read(path)
    messages = [Message(message["role"], valid_unicode(message["content"])) for message in tree["messages"]]
    session.restore(messages, tree["settings"], tree["answers"])


def _read(path: Path) -> dict[str, Any]:
    try:
        tree: Any = parse_json(read_text(path))
    except FileNotFoundError:
        raise GenerationError(f"no such file: {path}; /save writes one") from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise GenerationError(f"{path}: cannot be read as a saved chat ({why}); choose another file") from None
    if not isinstance(tree, dict) or tree.get("format") != FORMAT:
        raise GenerationError(f'{path}: is not a saved chat (its "format" is not {FORMAT}); choose another file')
    if not isinstance(tree.get("settings"), dict):
        raise GenerationError(f'{path}: "settings" must be an object')
    answers, messages = tree.get("answers"), tree.get("messages")
    if not isinstance(answers, int) or isinstance(answers, bool) or answers < 0:
        raise GenerationError(f'{path}: "answers" must be a whole number from 0 on')
    if not isinstance(messages, list):
        raise GenerationError(f'{path}: "messages" must be a list')
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise GenerationError(f'{path}: message {number} needs a text under "content"')
        if message.get("role") not in ROLES or (message["role"] == "system" and number > 1):
            raise GenerationError(f"{path}: message {number}: role must be user or assistant, or system in the first")
    return tree
