"""Define the routes of the page. A request names a run, which is looked up among the listed runs."""

import asyncio
import json
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import FileResponse, JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field

from minigpt import __version__
from minigpt.config import DataConfig, GenerationConfig, validate
from minigpt.config.presets import presets_file, read_presets, save_preset
from minigpt.errors import ConfigError, RunError
from minigpt.runs.compare import cautions, differences
from minigpt.runs.lock import delete_run
from minigpt.runs.record import RunRecord
from minigpt.serve.api.errors import ApiError
from minigpt.serve.api.prompts import encode
from minigpt.serve.api.state import State
from minigpt.serve.workbench import details
from minigpt.serve.workbench.form import form, unused, wrong
from minigpt.serve.workbench.inside import Inside
from minigpt.serve.workbench.notes import read_note, write_note
from minigpt.serve.workbench.process import Started, usage_of
from minigpt.serve.workbench.run_list import Damaged, RunList
from minigpt.serve.workbench.starting import Texts, planned, train_words
from minigpt.serve.workbench.static import FOLDER, KINDS, find_files

Name = Annotated[str, Field(max_length=500)]


class AsciiResponse(JSONResponse):
    """JSON in ASCII. A file or a request can hold half of a character, as \\ud83d, which UTF-8 cannot."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode()


class RequestBody(BaseModel):
    """The body of a request from the page."""

    model_config = ConfigDict(strict=True)


class RunRequest(RequestBody):
    """A run."""

    name: Name


class NoteRequest(RunRequest):
    """What a person wrote about a run; a field that is left out does not change."""

    note: Annotated[str, Field(max_length=10_000)] | None = None
    star: bool | None = None


class TextRequest(RequestBody):
    """A text, for a model."""

    model: Name
    text: Annotated[str, Field(max_length=1 << 20)]


class InsideRequest(TextRequest):
    """A text, for a model whose parts are changed."""

    factors: Annotated[dict[Name, Annotated[float, Field(ge=-10, le=10)]], Field(max_length=10_000)] = {}


class UploadRequest(RequestBody):
    """A part of a text file, sent in order; `done` is true for the last part. All parts have the same random key."""

    name: Annotated[str, Field(min_length=1, max_length=200)]
    text: Annotated[str, Field(max_length=2 << 20)]
    first: bool
    done: bool
    key: Annotated[str, Field(max_length=40)] = ""


class NewRunRequest(RequestBody):
    """A text of the list, and how to train on it.

    An empty budget leaves the length to the settings. The settings are written as after a flag.
    """

    text: Name
    budget: Annotated[str, Field(max_length=20)] = "5m"
    settings: Annotated[dict[Name, Annotated[str, Field(max_length=10_000)]], Field(max_length=200)] = {}
    name: Annotated[str, Field(max_length=100)] = ""


class InspectRequest(RequestBody):
    """A text of the list, or the run's own text if it is left out; with the tokenizer of a run, if one is named."""

    text: Name = ""
    name: Name = ""


class TokensRequest(RunRequest):
    """A text to encode with a run's tokenizer."""

    text: Annotated[str, Field(max_length=1 << 20)]


class PresetRequest(RequestBody):
    """Settings to save under a name."""

    name: Annotated[str, Field(min_length=1, max_length=100)]
    settings: dict[Name, Any]


class Workbench:
    """Everything that the page asks for, over the state of a server."""

    def __init__(self, state: State):
        self.state = state
        self.run_list = RunList(state.models.catalog.runs)
        self.kept = Texts(self.run_list)
        self.started = Started()
        self.files, self.looking = find_files(), Inside()

    def router(self) -> APIRouter:
        """The routes; they are not part of the API's document."""
        router = APIRouter(default_response_class=AsciiResponse)
        table: list[tuple[str, str, Callable[..., Any]]] = [
            ("GET", "/", self.home),
            ("GET", "/page/{name:path}", self.file),
            ("GET", "/api/runs", self.runs),
            ("GET", "/api/run", self.run),
            ("GET", "/api/figures", self.figures),
            ("GET", "/api/differences", self.differences),
            ("GET", "/api/presets", self.presets),
            ("POST", "/api/presets", self.save),
            ("GET", "/api/texts", self.texts),
            ("POST", "/api/texts", self.upload),
            ("POST", "/api/inspect", self.inspect),
            ("POST", "/api/tokens", self.tokens),
            ("GET", "/api/form", self.form),
            ("POST", "/api/check", self.check),
            ("POST", "/api/plan", self.plan),
            ("POST", "/api/start", self.start),
            ("POST", "/api/floors", self.floors),
            ("POST", "/api/stop", self.stop),
            ("POST", "/api/resume", self.resume),
            ("POST", "/api/note", self.note),
            ("POST", "/api/delete", self.delete),
            ("POST", "/api/why", self.why),
            ("POST", "/api/inside", self.inside),
        ]
        for method, path, function in table:
            router.add_api_route(path, function, methods=[method], include_in_schema=False, response_model=None)
        return router

    def home(self) -> Response:
        """The page."""
        return FileResponse(FOLDER / "page.html", media_type=KINDS[".html"], headers={"Cache-Control": "no-cache"})

    def file(self, name: str) -> Response:
        """A script or a style of the page."""
        if name not in self.files:
            raise ApiError(404, "the page has no such file")
        file = self.files[name]
        return FileResponse(file, media_type=KINDS[file.suffix], headers={"Cache-Control": "no-cache"})

    def runs(self) -> dict[str, Any]:
        """All runs, also those that cannot be read, and what this process uses."""
        found = self.run_list.all()
        runs = [row for run in found if not isinstance(run, Damaged) and (row := self._row(run))]
        damaged = [{"name": each.name, "why": each.why} for each in found if isinstance(each, Damaged)]
        server = {"version": __version__, "folder": str(Path.cwd()), "usage": usage_of(os.getpid())}
        loaded = [{"name": one.run.name, "bytes": one.bytes} for one in list(self.state.models.loaded.values())]
        begun = self.started.without_a_run({run.path for run in found if not isinstance(run, Damaged)})
        return {"runs": runs, "damaged": damaged, "begun": begun, "server": server | {"models": loaded}}

    def _row(self, run: RunRecord) -> dict[str, Any] | None:
        """A run; None if it was deleted since it was listed."""
        try:
            return self.started.status(run.path) | details.brief(run)
        except FileNotFoundError:
            return None

    def run(self, name: str) -> dict[str, Any]:
        """One run."""
        run = self.run_list.find(name)
        return self.started.status(run.path) | details.full(run)

    def figures(self, name: str, after: float = -1) -> dict[str, Any]:
        """A run's figures after a step, and whether a process trains it."""
        run = self.run_list.find(name)
        return self.started.status(run.path) | details.figures(run, after) | {"state": run.state}

    def differences(self, name: Annotated[list[str], Query(max_length=2)]) -> dict[str, Any]:
        """The settings in which two runs differ, and why their figures should not be compared."""
        one, two = (self.run_list.find(each) for each in (name[0], name[-1]))
        return {"settings": differences(one, two), "cautions": cautions([one, two])}

    def presets(self) -> dict[str, Any]:
        """Settings that were saved under names, here or with `minigpt generate --save-preset`; and what each setting
        does.
        """
        about = {name: field.description for name, field in GenerationConfig.model_fields.items()}
        return {"presets": read_presets(), "file": str(presets_file()), "help": about}

    def save(self, asked: PresetRequest) -> dict[str, Any]:
        """Save settings under a name. Raises ConfigError for settings that cannot be combined."""
        whole = validate({"generation": GenerationConfig().model_dump() | asked.settings}).generation.model_dump()
        save_preset(asked.name, {name: whole[name] for name in asked.settings})
        return self.presets()

    async def floors(self, asked: RunRequest) -> dict[str, float]:
        """The losses of simpler models on the run's text."""
        run = await asyncio.to_thread(self.run_list.find, asked.name)
        return await self.state.background.do(lambda: details.measure_floors(run))

    def stop(self, asked: RunRequest) -> dict[str, bool]:
        """Stop the run as Ctrl-C does."""
        self.started.stop(self.run_list.find(asked.name))
        return {"done": True}

    def resume(self, asked: RunRequest) -> dict[str, bool]:
        """Continue the run."""
        self.started.resume(self.run_list.find(asked.name))
        return {"done": True}

    def note(self, asked: NoteRequest) -> dict[str, Any]:
        """Save a note about a run."""
        folder = self.run_list.find(asked.name).folder
        new = read_note(folder) | asked.model_dump(include={"note", "star"}, exclude_none=True)
        write_note(folder, **new)
        return new

    def delete(self, asked: RunRequest) -> dict[str, bool]:
        """Delete a run with all its files. Raises RunError if a process trains it, or is about to."""
        paths = self.run_list.paths()
        if asked.name not in paths:
            raise RunError(f"there is no run {asked.name!r}")
        path = paths[asked.name]
        if self.started.status(path)["starting"]:
            raise RunError(f"{asked.name} is starting; stop it first")
        delete_run(path)
        return {"done": True}

    async def why(self, asked: TextRequest) -> dict[str, Any]:
        """How surprising each token of a text is, and which tokens the model thought likelier."""
        async with self.state.models.use(asked.model) as loaded:
            text = await asyncio.to_thread(loaded.run.clean, asked.text)
            ids = await asyncio.to_thread(encode, text, loaded)
            return await self.state.background.do(lambda: details.why(loaded, text, ids))

    async def inside(self, asked: InsideRequest) -> dict[str, Any]:
        """What happens in a model while it reads a text, with some of its parts scaled or switched off."""
        listed = await self.state.models.catalog.find(asked.model)
        return await self.state.background.do(lambda: self.looking.look(listed, asked.text, asked.factors))

    def texts(self) -> dict[str, Any]:
        """The texts that a run can learn from."""
        return {"texts": list(self.kept.all())}

    def upload(self, asked: UploadRequest) -> dict[str, str]:
        """Take a part of a text file; the answer gives its name. Nothing in it is ever run."""
        return {"text": self.kept.add(asked.name, asked.text, asked.first, asked.done, asked.key)}

    def inspect(self, asked: InspectRequest) -> dict[str, Any]:
        """The report of `minigpt data inspect` on a text."""
        run = self.run_list.find(asked.name) if asked.name else None
        config = DataConfig(source=self.kept.find(asked.text)) if asked.text or not run else run.config.data
        return details.inspected(config, run)

    def tokens(self, asked: TokensRequest) -> dict[str, Any]:
        """A text cut into tokens by the tokenizer of a run."""
        return details.tokens(self.run_list.find(asked.name), asked.text)

    def form(self) -> dict[str, Any]:
        """The settings that the page may set, as JSON Schema."""
        return {"sections": form()}

    def check(self, asked: NewRunRequest) -> dict[str, Any]:
        """What is wrong with the settings and the name; if nothing is, what has no effect, and the command to run."""
        found, source = wrong(asked.settings), self.kept.find(asked.text)
        try:
            path = self.kept.place(asked.name)
        except RunError as error:
            return {"wrong": [*found, str(error)], "unused": [], "line": ""}
        if found:
            return {"wrong": found, "unused": [], "line": ""}
        words = train_words(source, asked.budget, asked.settings, path)
        return {"wrong": [], "unused": unused(asked.settings, asked.budget), "line": shlex.join(["minigpt", *words])}

    async def plan(self, asked: NewRunRequest) -> dict[str, Any]:
        """What `--budget` would choose, and what loss, size and memory to expect. This measures the machine."""
        source = await asyncio.to_thread(self.kept.find, asked.text)
        return await planned(source, asked.budget, asked.settings)

    def start(self, asked: NewRunRequest) -> dict[str, str]:
        """Train, as the command does. Raises RunError for a name that is taken or not allowed."""
        path = self.kept.place(asked.name)
        if found := wrong(asked.settings):
            raise ConfigError(found)
        source = self.kept.find(asked.text)
        self.started.begin(path, train_words(source, asked.budget, asked.settings, path))
        if not {path, path.parent} & {*self.run_list.roots}:  # the server was given runs, not their folder
            self.run_list.roots.append(path)
        return {"name": path.name}
