"""Know which models exist, by name, and keep some of them in memory.

A name is looked up among the names of the runs that were found, so nothing that a client sends becomes a path:

    my              the run's best checkpoint
    my@500          a checkpoint that was kept
    my+pirate       an adapter in the run's folder

A model is loaded when it is first asked for. Then models that are not in use are unloaded: those whose checkpoint was
deleted or written again, and if there is too little memory others, the least recently used first. Names that mean the
same checkpoint share one model.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from minigpt.errors import RunError, UserError
from minigpt.files import find
from minigpt.generation.chat import Plain, Turns
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.layout import CONFIG, MANIFEST, RunFolder, step_of
from minigpt.runs.chat_format import chat_format_of
from minigpt.runs.load import LoadedRun, load_run
from minigpt.runs.record import run_folders
from minigpt.runtime.memory import host_memory
from minigpt.serve.engine import Engine, UnavailableError
from minigpt.serve.limits import Limits
from minigpt.training.finetune import find_adapters
from minigpt.weights import checkpoint
from minigpt.weights.pretrained import is_huggingface

FRESH = 2.0
"""The list of runs is read again after this many seconds."""
UNKNOWN = 8 << 30
"""Bytes assumed to be free if the system does not say."""
Key = tuple[Path, int]
"""A checkpoint: where it is, and when it was written, since a run that is trained again has the same places."""


@dataclass(frozen=True)
class Listed:
    """A model that can be asked for: its name, where it is, when it was written (seconds since 1970)."""

    name: str
    path: Path
    created: int


class Catalog:
    """The names of all models.

    Args:
        runs: run directories, checkpoints or Hugging Face directories; for any other folder, the runs in it.
    """

    def __init__(self, runs: Sequence[Path]):
        self.runs = list(runs)
        self._read_at = float("-inf")
        self._known: dict[str, Listed] = {}

    def read(self) -> dict[str, Listed]:
        """All models by name, as they are on disk."""
        known: dict[str, Listed] = {}
        for listed in (listed for root in self.runs for listed in _in_folder(root)):
            known.setdefault(listed.name, listed)
        self._known, self._read_at = known, time.monotonic()
        return known

    async def listed(self) -> dict[str, Listed]:
        """All models by name, as they were at most `FRESH` seconds ago; the disk is read in another thread."""
        fresh = time.monotonic() - self._read_at <= FRESH
        return self._known if fresh else await asyncio.to_thread(self.read)

    async def find(self, name: str) -> Listed:
        """The model of that name. Raises RunError."""
        known = await self.listed()
        if name not in known:
            raise RunError(f"the model {name!r} does not exist; GET /v1/models lists those that do")
        return known[name]


def named(root: Path) -> dict[str, Path]:
    """The directory itself, by its name, if it is a run; else the runs in it, by their names."""
    return {
        path.resolve().name if path == root else path.relative_to(root).as_posix(): path for path in run_folders([root])
    }


def _in_folder(root: Path) -> list[Listed]:
    """A run, or the runs in a folder, each with its checkpoints and adapters."""
    found: list[Listed] = []
    for name, path in named(root).items():
        steps = RunFolder(path).steps()
        whole = is_huggingface(path) or bool(steps)
        paths = {name: path} if whole or (path == root and _is_one(path)) else {}
        paths |= {f"{name}@{step_of(step)}": step for step in steps}
        paths |= {f"{name}+{adapter}": place for adapter, place in find_adapters(path).items()}
        found += [one for name, path in paths.items() if (one := as_listed(name, path))]
    return found


def _is_one(path: Path) -> bool:
    """Whether a path is a run or a checkpoint, not a folder that has no runs yet."""
    return path.is_file() or any((path / name).is_file() for name in (CONFIG, MANIFEST))


def as_listed(name: str, path: Path) -> Listed | None:
    """The model at a path; None if the run's process has deleted it since it was found."""
    try:
        return Listed(name, path, int(path.stat().st_mtime))
    except FileNotFoundError:
        return None


def key_of(listed: Listed) -> Key:
    """The checkpoint that a name means now. Raises CheckpointError, OSError."""
    place = listed.path if is_huggingface(listed.path) else checkpoint.resolve(listed.path)
    return place, place.stat().st_mtime_ns


def _is_there(key: Key) -> bool:
    """Whether the checkpoint is still on disk as it was. Raises OSError."""
    found = find(key[0])
    return found is not None and found.st_mtime_ns == key[1]


@dataclass(eq=False)
class Loaded:
    """A model in memory."""

    key: Key
    run: LoadedRun
    texts: int
    """How many texts it can write at once."""
    users: int = 0
    used: float = 0.0

    @cached_property
    def chat_format(self) -> Plain | Turns:
        """How a chat with it is written as a text."""
        return chat_format_of(self.run)

    @cached_property
    def bytes(self) -> int:
        """Bytes of its weights."""
        tensors = {tensor.data_ptr(): tensor.nbytes for tensor in self.run.model.state_dict().values()}
        return sum(tensors.values())


def _unreadable(listed: Listed, error: Exception) -> UnavailableError:
    return UnavailableError(f"the model {listed.name!r} cannot be loaded: {error}", 30)


class Models:
    """The models in memory.

    Args:
        catalog: the names.
        engine: called when a model is dropped.
        device, precision: as in `minigpt generate`.
    """

    def __init__(self, catalog: Catalog, engine: Engine, limits: Limits, device: str = "auto", precision: str = "fp32"):
        self.catalog, self.engine, self.limits = catalog, engine, limits
        self.device, self.precision = device, precision
        self.memory = limits.memory or (host_memory()[1] or UNKNOWN) // 2
        self.loaded: dict[Key, Loaded] = {}
        self._loading = asyncio.Lock()

    @asynccontextmanager
    async def use(self, name: str) -> AsyncIterator[Loaded]:
        """The model with this name; it stays in memory while it is used.

        Raises:
            RunError: no such name.
            UnavailableError: it cannot be loaded now: no memory, or damaged.
        """
        listed = await self.catalog.find(name)
        try:
            key = key_of(listed)
        except (UserError, OSError) as error:
            raise _unreadable(listed, error) from None
        if key not in self.loaded:
            async with self._loading:
                if key not in self.loaded:
                    await self._load(listed, key)
        loaded = self.loaded[key]
        loaded.users += 1
        try:
            yield loaded
        finally:
            loaded.users -= 1
            loaded.used = time.monotonic()

    async def _load(self, listed: Listed, key: Key) -> None:
        place, _ = key
        try:
            for one in [one for one in self.loaded.values() if not one.users and not _is_there(one.key)]:
                self._drop(one)  # a run that trains writes checkpoints for days
            self._make_room(sum(file.stat().st_size for file in place.rglob("model*.safetensors")))
            reading = asyncio.ensure_future(asyncio.to_thread(self._read, place))
            try:
                await asyncio.shield(reading)
            finally:  # also if the client has gone: its next try finds the model
                run = await reading
                loaded = self.loaded[key] = Loaded(key, run, self._texts(run), used=time.monotonic())
                self._make_room(0, loaded)
        except (UserError, OSError) as error:
            raise _unreadable(listed, error) from None

    def _read(self, path: Path) -> LoadedRun:
        run = load_run(path, self.device)
        prepare_decoding(run.model, self.precision)
        return run

    def _make_room(self, needed: int, kept: Loaded | None = None) -> None:
        """Drop models that are not in use until there is room. Raises UnavailableError if there is still too little."""
        idle = sorted((one for one in self.loaded.values() if not one.users and one is not kept), key=lambda o: o.used)
        while self.loaded and needed + sum(one.bytes for one in self.loaded.values()) > self.memory:
            if not idle:
                if kept:
                    return
                raise UnavailableError("other models are in use, and there is no memory for one more now", 10)
            self._drop(idle.pop(0))

    def _drop(self, one: Loaded) -> None:
        self.engine.forget(one.run.model)
        del self.loaded[one.key]

    def _texts(self, run: LoadedRun) -> int:
        """How many texts the model may write at once: their keys and values take at most a quarter of the memory."""
        shape, weight = run.model.config, run.model.compute_dtype.itemsize
        each = 2 * shape.num_layers * shape.kv_heads * shape.head_size * 2 * shape.max_seq_len * weight
        return max(1, min(self.limits.texts, self.memory // 4 // each))
