r"""Where lines come from: an editor with history in a terminal, else standard input. A \ at the end goes on below."""

import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minigpt.errors import GenerationError

PROMPT = "> "


class PlainLines:
    """Standard input as it is."""

    def read(self) -> str | None:
        """The next text. Raises GenerationError for input that is not text."""
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
    r"""Lines from a terminal: editing, history by arrows and Ctrl-R, Tab; \ or Alt-Enter begins a new one.

    Args:
        history: file of what was typed; made if need be. Where it cannot be, history ends with the program.
        words: what Tab completes: first words, each with what may follow it.
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
            complete_style=CompleteStyle.READLINE_LIKE,  # a menu would need eight empty rows below the prompt
            reserve_space_for_menu=0,
        )

    def read(self) -> str | None:
        """The next text."""
        try:
            return self._session.prompt()
        except (EOFError, KeyboardInterrupt):
            return None


def candidates(text: str, words: Mapping[str, Iterable[str]]) -> list[str]:
    """What the last word may become: candidates("/set tem", {"/set": ["temperature", "seed"]}) -> ["temperature"]."""
    first, space, second = text.partition(" ")
    if not text or " " in second:
        return []
    return [word for word in (words.get(first, ()) if space else words) if word.startswith(second if space else first)]


def _writable(file: Path) -> bool:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch(mode=0o600)  # what is typed is nobody else's
        file.open("ab").close()
    except OSError:
        return False
    return True
