"""Start a run from the page: the texts to learn from, what a budget would reach, and the command.

Texts that a person sends are saved in `texts/`, next to the folder of the runs, under a name made of letters (of any
script), digits, - and _. A text is looked up among the listed ones: no name in a request becomes a path.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import regex

from minigpt.data.named_datasets import NAMED
from minigpt.errors import RunError, UserError, storage_error
from minigpt.files import sync, temporary_path
from minigpt.layout import RunFolder, check_name
from minigpt.runs.lock import PERMISSIONS
from minigpt.serve.workbench.form import flags
from minigpt.serve.workbench.process import command, last_line
from minigpt.serve.workbench.run_list import Damaged, RunList

MOST = 256 << 20
"""Largest text that can be sent, in bytes; train on longer ones in a terminal."""
MOST_UNFINISHED = 8
"""Most texts that are being sent. A page that is closed meanwhile leaves a part; the oldest part is deleted first."""
SENT = "sent: "
"""Put before the names of sent texts, so that they cannot hide other texts."""


class Texts:
    """The texts: published ones, those of earlier runs, and those that were sent.

    Args:
        run_list: the list of the runs. New runs are written into its first folder.
    """

    def __init__(self, run_list: RunList):
        self.run_list = run_list
        first = run_list.roots[0]
        self.runs = first.parent if RunFolder(first).is_run else first
        self.folder = self.runs.absolute().parent / "texts"
        self._parts: dict[tuple[str, str], Path] = {}  # unfinished texts, by name and key
        self._naming = threading.Lock()  # two texts of one name may end at the same time

    def all(self) -> dict[str, str]:
        """The source of each, by the name that is shown."""
        sent = {f"{SENT}{path.name}": str(path) for path in sorted(self.folder.glob("*.txt"))}
        sources = [run.config.data.source for run in self.run_list.all() if not isinstance(run, Damaged)]
        earlier = {source: source for source in sources if Path(source).is_file()}
        return sent | {"stories": "stories"} | {name: name for name in NAMED} | earlier

    def find(self, name: str) -> str:
        """The source of that name. Raises RunError."""
        known = self.all()
        if name not in known:
            raise RunError(f"there is no text {name!r} here; choose one from the list, or send it")
        return known[name]

    def add(self, name: str, text: str, first: bool, done: bool, key: str = "") -> str:
        """Add a part to a text that is being sent; returns the name under which it is found when it is complete.

        All parts of a text have the same key. Texts of one name that two pages send at the same time have different
        keys.

        Raises:
            UserError: it is too long, or its beginning is missing.
            StorageError: it cannot be written.
        """
        stem = regex.sub(r"[^\p{L}\p{M}\p{N}_-]+", "-", name.rpartition(".")[0] or name)
        stem = stem.strip("-_")[:60] or "text"  # a letter has up to 4 bytes, and a file's name up to 255
        part: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if first:
                while len(self._parts) >= MOST_UNFINISHED:
                    self._parts.pop(next(iter(self._parts))).unlink(missing_ok=True)
                self._parts.setdefault((stem, key), temporary_path(self.folder / f"{stem}.txt"))
            part = self._parts.get((stem, key))
            if part is None:
                raise UserError("the beginning of this text is missing; send it again")
            with part.open("wb" if first else "ab") as file:
                file.write(text.encode(errors="replace"))
                size = file.tell()
            if size > MOST or done:
                del self._parts[stem, key]
            if size > MOST:
                part.unlink()
                raise UserError(f"the text is over {MOST >> 20} MB; train on it in a terminal: minigpt train FILE")
            if not done:
                return ""
            path, number = self.folder / f"{stem}.txt", 2
            sync(part)
            with self._naming:
                while path.exists() and path.read_bytes() != part.read_bytes():
                    path, number = self.folder / f"{stem}-{number}.txt", number + 1
                part.replace(path)
        except OSError as error:
            self._parts.pop((stem, key), None)
            with contextlib.suppress(OSError):  # only the first error is reported
                if part is not None:  # it would keep the disk full
                    part.unlink()
            raise storage_error(self.folder, error, PERMISSIONS) from None
        return f"{SENT}{path.name}"

    def place(self, name: str) -> Path:
        """The directory of a new run. Raises RunError for a name that is taken or not allowed."""
        if "/" in name or "\\" in name or name.startswith("."):
            raise RunError(f"a run cannot be named {name!r}; use letters, digits, - and _")
        path = self.runs / check_name(name)
        if path.exists():
            raise RunError(f"there is a run {name} already; choose another name")
        return path


def train_words(source: str, budget: str, settings: Mapping[str, str], path: Path) -> list[str]:
    """The command that trains on a text. Raises ConfigError for a setting that is not in the form."""
    place = ["--name", path.name, "--logging.runs-dir", str(path.parent)]
    return ["train", source, *_within(budget), *flags(settings), *place]


async def planned(source: str, budget: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """What the command says that it would do; without a budget only size and memory.

    Raises UserError with the command's own message.
    """
    if not budget:
        found = await _answer("model", "inspect", "--json", *flags(settings))
        return {"parameters": found["parameters"]["total"], "memory_bytes": found["training_memory"]["total"]}
    return await _answer("train", source, *_within(budget), *flags(settings), "--dry-run", "--json")


def _within(budget: str) -> list[str]:
    return ["--budget", budget] if budget else []


async def _answer(*words: str) -> dict[str, Any]:
    """The object that a command prints. Raises UserError with its last line if it fails."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command(*words), stdin=asyncio.subprocess.DEVNULL, stdout=pipe, stderr=pipe
    )
    try:
        answered, said = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise UserError(last_line(said, process.returncode).removeprefix("minigpt: "))
    return json.loads(answered)
