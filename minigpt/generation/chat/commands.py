"""Run what a person types in a chat: a text for the model, or a command such as /help.

Each command is a row of a table with a function that gets the words after the command's name. To send a text that
begins with /, type // instead.
"""

import json
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from minigpt.config import GenerationConfig, flag_value
from minigpt.console import counted
from minigpt.errors import ConfigError, GenerationError, nearest
from minigpt.files import expand_home
from minigpt.generation.chat.saved import load_session, save_session
from minigpt.generation.chat.session import Session

SETTINGS = GenerationConfig.model_fields


@dataclass(frozen=True)
class Reply:
    """What to do after a line: show `text`, then the pieces of `answer` as they come; end the chat if `leave`."""

    text: str = ""
    answer: Generator[str] | None = None
    leave: bool = False


class Command(NamedTuple):
    """A command: its arguments, its help text, and its function, which gets the text after the name."""

    usage: str
    help: str
    run: "Callable[[Commands, str], Reply]"


class Commands:
    """Runs the lines that a person types on a session.

    Args:
        presets: name -> settings; raises ConfigError for an unknown name.
        run: the run that the model is from, written into saved chats.
    """

    def __init__(self, session: Session, presets: Callable[[str], dict[str, Any]], run: str = ""):
        self.session, self.presets, self.run = session, presets, run
        self.defaults = session.config

    def take(self, line: str) -> Reply:
        """Run one line.

        Raises:
            UserError: with one line for the person; nothing has changed. The answer's pieces may raise it too.
        """
        if line.startswith("/") and not line.startswith("//"):
            name, rest = (*line[1:].split(maxsplit=1), "", "")[:2]
            if name not in COMMANDS:
                raise GenerationError(f"no such command: /{name}; {nearest(name, COMMANDS)} (a text with / begins //)")
            return COMMANDS[name].run(self, rest.strip())
        if line:
            return Reply(answer=self.session.say(line[1:] if line.startswith("//") else line))
        goes_on = self.session.messages and not self.session.chat_format.roles
        return Reply(answer=self.session.extend()) if goes_on else Reply()

    def _help(self, rest: str) -> Reply:
        name = rest.lstrip("/").replace("-", "_")
        if name in COMMANDS:
            return Reply(f"/{name} {COMMANDS[name].usage}".rstrip() + f": {COMMANDS[name].help}")
        if name:
            return Reply(self._setting(name))
        uses = [(f"/{name} {command.usage}", command.help) for name, command in COMMANDS.items()]
        width = max(len(use) for use, _ in uses)
        roles = self.session.chat_format.roles
        plain = "" if roles else "What you type is continued; an empty line continues it again.\n"
        return Reply(plain + "\n".join(f"{use:<{width}}  {text}" for use, text in uses))

    def _settings(self, rest: str) -> Reply:
        """List all settings and mark the changed ones."""
        _nothing(rest, "settings")
        width = max(map(len, SETTINGS))
        rows = []
        for name, info in SETTINGS.items():
            value = getattr(self.session.config, name)
            mark = " " if value == getattr(self.defaults, name) else "*"
            rows.append(f"{mark} {name:<{width}} {_json(value):<6} {' '.join(str(info.description).split())}")
        return Reply("\n".join(rows))

    def _setting(self, name: str) -> str:
        if name not in SETTINGS:
            raise ConfigError(f"no such setting: {name}; {nearest(name, SETTINGS)}")
        return f"{name} {_json(getattr(self.session.config, name))}: {SETTINGS[name].description}"

    def _set(self, rest: str) -> Reply:
        name, value = (*rest.split(maxsplit=1), "", "")[:2]
        name = name.replace("-", "_")
        if not name:
            raise ConfigError("/set NAME VALUE, for example /set temperature 0.7; /settings lists the names")
        shown = self._setting(name)
        if not value:
            return Reply(shown)
        self.session.update({name: flag_value(name, f"generation.{name}", value)})
        return Reply(f"{name} {_json(getattr(self.session.config, name))}")

    def _regenerate(self, rest: str) -> Reply:
        _nothing(rest, "regenerate")
        return Reply(answer=self.session.regenerate())

    def _continue(self, rest: str) -> Reply:
        _nothing(rest, "continue")
        return Reply(answer=self.session.extend())

    def _undo(self, rest: str) -> Reply:
        _nothing(rest, "undo")
        self.session.undo()
        last = self.session.messages[-1].content.strip() if self.session.messages else ""
        shown = last if len(last) <= 60 else f"...{last[-60:]}"
        return Reply(f"undone; the last text is now: {_json(shown)}" if last else "undone; the conversation is empty")

    def _alternatives(self, rest: str) -> Reply:
        words = rest.split()
        if len(words) > 2 or not all(word.isdecimal() for word in words):
            raise GenerationError("/alternatives [N [K]] takes whole numbers: of a token and of its alternative")
        numbers = [int(word) for word in words]
        if len(numbers) == 2:
            return Reply(answer=self.session.choose(*numbers))
        if not numbers:
            found = enumerate(self.session.tokens(), 1)
            return Reply("  ".join(f"{place} {_json(text)} {chance:.0%}" for place, (text, chance) in found))
        place = self.session.alternatives(numbers[0])
        rows = [f"{rank:>3}  {chance:7.2%}  {_json(text)}" for rank, (_, text, chance) in enumerate(place.choices, 1)]
        there = f"token {numbers[0]} is {_json(place.text)}, {place.probability:.2%}; the likeliest there:"
        return Reply("\n".join([there, *rows, f"/alternatives {numbers[0]} K continues with number K"]))

    def _save(self, rest: str) -> Reply:
        save_session(_path(rest, "save"), self.session, self.run)
        return Reply(f"saved {rest}")

    def _load(self, rest: str) -> Reply:
        load_session(_path(rest, "load"), self.session)
        return Reply(f"loaded {rest}: {counted(len(self.session.messages), 'message')} and the settings")

    def _preset(self, rest: str) -> Reply:
        if not rest:
            raise ConfigError("/preset NAME; minigpt generate --save-preset NAME saves one")
        settings = self.presets(rest)
        self.session.update(settings)
        return Reply(" ".join(f"{name} {_json(value)}" for name, value in settings.items()))

    def _system(self, rest: str) -> Reply:
        self.session.set_system(rest)
        return Reply("system text set" if rest else "no system text")

    def _quit(self, rest: str) -> Reply:
        _nothing(rest, "quit")
        return Reply(leave=True)


COMMANDS = {
    "help": Command("[NAME]", "this list; or what a command or a setting does", Commands._help),
    "set": Command("NAME VALUE", "change a setting; without VALUE, show it", Commands._set),
    "settings": Command("", "all settings; a * marks those that were changed", Commands._settings),
    "regenerate": Command("", "write the last answer again, with another seed", Commands._regenerate),
    "continue": Command("", "continue the last answer", Commands._continue),
    "undo": Command("", "undo the last turn, or the last change to it", Commands._undo),
    "alternatives": Command(
        "[N [K]]", "list the last answer's tokens; with N the likeliest at token N; with K continue with number K",
        Commands._alternatives,
    ),
    "save": Command("FILE", "write the conversation and the settings as JSON", Commands._save),
    "load": Command("FILE", "continue from a file written by /save", Commands._load),
    "preset": Command("NAME", "take the settings saved by minigpt generate --save-preset", Commands._preset),
    "system": Command("TEXT", "what the model reads before all turns; without TEXT, nothing", Commands._system),
    "quit": Command("", "leave; so does Ctrl-D", Commands._quit),
}  # fmt: skip


def _nothing(rest: str, name: str) -> None:
    if rest:
        raise GenerationError(f"/{name} takes nothing after it, not {rest!r}")


def _path(rest: str, name: str) -> Path:
    if not rest:
        raise GenerationError(f"/{name} FILE, for example /{name} chat.json")
    return Path(expand_home(rest))


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
