r"""Read what a person types: from an editor with history in a terminal, else from standard input.

A line that ends in \ continues on the next line.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt.errors import GenerationError

PROMPT = "> "


class PlainLines:
    """Reads lines from standard input."""

    def read(self) -> str | None:
        """Return the next text, or None at the end. Raises GenerationError if the input is not text."""
        parts: list[str] = []
        while not parts or parts[-1].endswith("\\"):
            if sys.stdin.isatty():
                print(PROMPT, end="", file=sys.stderr, flush=True)
            try:
                parts.append(input())
            except (EOFError, KeyboardInterrupt):
                if not parts:
                    return None
                break
            except UnicodeDecodeError as error:
                raise GenerationError(f"standard input is not {error.encoding} text; convert it") from None
        return "\n".join([*(part.removesuffix("\\") for part in parts[:-1]), parts[-1].removesuffix("\\")])


class EditedLines:
    r"""Reads lines with an editor in a terminal.

    Arrows and Ctrl-R look up earlier lines, Tab completes a word, \ or Alt-Enter begins a new line.

    Args:
        history: file that keeps the typed lines; made if missing. If it cannot be made, the history is not saved.
        words: the words that Tab completes: first word -> words that may follow it.
    """

    def __init__(self, history: Path, words: Mapping[str, Iterable[str]]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import Completer, Completion
        from prompt_toolkit.enums import DEFAULT_BUFFER
        from prompt_toolkit.filters import has_focus
        from prompt_toolkit.history import FileHistory, InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.shortcuts import CompleteStyle

        keys = KeyBindings()

        @keys.add("enter", filter=has_focus(DEFAULT_BUFFER))  # not while Ctrl-R searches
        def _(event: Any) -> None:
            buffer = event.current_buffer
            if buffer.document.text_before_cursor.endswith("\\") and buffer.document.is_cursor_at_the_end:
                buffer.delete_before_cursor()
                buffer.newline(copy_margin=False)
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter", filter=has_focus(DEFAULT_BUFFER))
        def _(event: Any) -> None:
            event.current_buffer.newline(copy_margin=False)

        class Words(Completer):
            def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
                text = document.text_before_cursor
                for word in candidates(text, words):
                    yield Completion(word, start_position=-len(text.split(" ")[-1]))

        self._session: Any = PromptSession(
            PROMPT,
            history=FileHistory(str(history)) if _writable(history) else InMemoryHistory(),
            key_bindings=keys,
            multiline=True,
            prompt_continuation="  ",
            completer=Words(),
            complete_while_typing=False,
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would keep eight rows below the prompt empty
            reserve_space_for_menu=0,
        )

    def read(self) -> str | None:
        """Return the next text, or None at the end."""
        try:
            return self._session.prompt()
        except (EOFError, KeyboardInterrupt):
            return None


def candidates(text: str, words: Mapping[str, Iterable[str]]) -> list[str]:
    """Completions of the last word: candidates("/set tem", {"/set": ["temperature", "seed"]}) -> ["temperature"]."""
    first, space, second = text.partition(" ")
    if not text or " " in second:
        return []
    return [word for word in (words.get(first, ()) if space else words) if word.startswith(second if space else first)]


def _writable(file: Path) -> bool:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # only the user may read what was typed
        file.open("ab").close()
    except OSError:
        return False
    return True
