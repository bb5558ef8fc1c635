"""Test the routes of the page of `minigpt serve`: runs by name, figures after a step, stop and resume, refusals."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from page_run import make_run as make_page_run
from served import PROMPT, make_runs, served

from minigpt import tokenizers
from minigpt.cli import main
from minigpt.explanation import html as pictures
from minigpt.explanation.recording import record
from minigpt.explanation.surprise import surprises
from minigpt.runs.load import load_run
from minigpt.runs.record import read_run
from minigpt.serve.workbench import details
from minigpt.serve.workbench.details import kept

pytest.importorskip("fastapi", reason="needs the extra serve")
httpx = pytest.importorskip("httpx", reason="needs httpx")
LINES = [
    {"step": 0, "epoch": 0.0, "tokens": 0, "seconds": 0.0, "val_loss": 4.0, "bits_per_byte": 5.0},
    {"step": 10, "epoch": 0.1, "tokens": 100, "seconds": 1.0, "loss": 3.0, "lr": 1e-3, "val_loss": 2.0},
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_runs(tmp_path_factory.mktemp("runs"))
    (folder / "base" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    (folder / "torn").mkdir()
    (folder / "torn" / "config.yaml").write_text("model: [")
    return folder


@pytest.fixture(scope="module")
def client(runs: Path) -> Iterator[Any]:
    with served(runs) as address, httpx.Client(base_url=address, timeout=300) as made:
        yield made


def test_the_page_is_our_files_and_nothing_else(client: Any):
    page = client.get("/")
    assert page.status_code == 200 and "<title>minigpt</title>" in page.text
    assert "default-src 'self'" in page.headers["content-security-policy"]
    names = set(re.findall(r'(?:src|href)="(/[^"]+)"', page.text))
    waiting, seen = set(names), set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        answer = client.get(name)
        assert answer.status_code == 200, name
        waiting |= {f"/page/{found}" for found in re.findall(r'from "\./([^"]+)"', answer.text)} - seen
    assert {"/page/main.js", "/page/curve.js", "/page/explain/tools.js"} <= seen
    assert client.get("/page/explain/page.css").text == (pictures.FOLDER / "page.css").read_text()
    assert "style=" not in page.text and "<style" not in page.text and "onclick" not in page.text


@pytest.mark.parametrize("name", ["../server.py", "%2e%2e/server.py", "..%2f..%2flayout.py", "/etc/passwd", "none.js"])
def test_no_name_of_a_file_leaves_the_page(client: Any, name: str):
    assert client.get(f"/page/{name}").status_code == 404


@pytest.mark.parametrize("name", ["../runs/base", "/etc", "base/..", "", "base@1", "\x00", "none"])
@pytest.mark.parametrize("path", ["/api/run", "/api/figures", "/api/stop", "/api/resume", "/api/note", "/api/delete"])
def test_only_runs_that_were_listed_are_touched(client: Any, path: str, name: str):
    get = path in ("/api/run", "/api/figures")
    answer = client.get(path, params={"name": name}) if get else client.post(path, json={"name": name})
    assert answer.status_code == 404 and "no run" in answer.json()["error"]["message"]


def test_runs_are_listed_and_a_damaged_one_says_why(client: Any):
    found = client.get("/api/runs").json()
    assert [run["name"] for run in found["runs"]] == ["base", "talks"]
    base = found["runs"][0]
    assert (base["state"], base["steps"], base["best_val_loss"], base["star"]) == ("finished", 10, 2.0, False)
    assert found["damaged"][0]["name"] == "torn" and "config.yaml" in found["damaged"][0]["why"]


def test_half_a_character_in_a_file_does_not_hide_all_runs(client: Any, runs: Path):
    (runs / "base" / "note.json").write_text('{"note": "\\ud83d", "star": false}')
    assert client.get("/api/runs").json()["runs"][0]["note"] == "\ud83d"
    (runs / "base" / "note.json").unlink()


def test_a_run_is_told_with_all_that_the_page_shows(client: Any, runs: Path):
    run = client.get("/api/run", params={"name": "base"}).json()
    assert [each["step"] for each in run["checkpoints"]] == [1, 2]
    assert run["command"].startswith("minigpt train ") and run["generation"]["temperature"] == 0.8
    assert (run["chats"], run["process"], run["floors"]) == (False, None, {})
    assert client.get("/api/run", params={"name": "talks"}).json()["chats"]


def test_figures_come_past_a_step(client: Any, runs: Path):
    asked = {"name": "base"}
    assert client.get("/api/figures", params=asked).json()["lines"] == LINES
    assert client.get("/api/figures", params=asked | {"after": 0}).json()["lines"] == LINES[1:]
    more = {**LINES[1], "step": 20}
    with (runs / "base" / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(more) + "\n")
    found = client.get("/api/figures", params=asked | {"after": 10}).json()
    assert (found["lines"], found["last"], found["incidents"]) == ([more], 20, [])


def test_a_note_stays_with_the_run(client: Any, runs: Path):
    told = client.post("/api/note", json={"name": "base", "note": "<b>best</b> ☆"}).json()
    assert told == {"note": "<b>best</b> ☆", "star": False}
    assert client.post("/api/note", json={"name": "base", "star": True}).json()["note"] == "<b>best</b> ☆"
    assert client.get("/api/runs").json()["runs"][0]["star"]
    client.post("/api/note", json={"name": "base", "note": "", "star": False})
    assert not (runs / "base" / "note.json").exists()


def test_presets_are_those_of_the_command(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path))
    assert client.get("/api/presets").json()["presets"] == {}
    found = client.post("/api/presets", json={"name": "bold", "settings": {"temperature": 1.2}}).json()
    assert found["presets"] == {"bold": {"temperature": 1.2}} and "greedy" in found["help"]["temperature"]
    wrong = client.post("/api/presets", json={"name": "bad", "settings": {"top_p": 7}})
    assert wrong.status_code == 400 and "top_p" in wrong.json()["error"]["message"]


def test_why_tells_what_the_model_expected(client: Any, runs: Path):
    found = client.post("/api/why", json={"model": "base@2", "text": PROMPT}).json()
    run = load_run(runs / "base" / "checkpoints" / "step-00000002", "cpu")
    ids = run.tokenizer.encode(PROMPT)
    rows = found["tokens"]
    assert [row["id"] for row in rows] == [*ids, None] and found["left_out"] == 0
    assert [row["loss"] for row in rows[1:-1]] == pytest.approx(record(run.model, ids).loss.tolist(), abs=1e-4)
    assert [row["begin"] for row in rows] == list(range(len(PROMPT) + 1))
    for row in rows[1:-1]:
        likely = [each["id"] for each in row["likeliest"]]
        assert row["rank"] > 10 if row["id"] not in likely else likely.index(row["id"]) + 1 == row["rank"]
    long = client.post("/api/why", json={"model": "base", "text": PROMPT * 10}).json()
    assert long["left_out"] == len(PROMPT) * 10 - 64 and long["tokens"][0]["begin"] == long["left_out"]


def test_why_places_words_in_the_text_as_they_were_read(tmp_path: Path):
    run = load_run(make_page_run(tmp_path / "my", kind="word"), "cpu")
    text = "the\t\tcat\nzebra"
    found = details.why(SimpleNamespace(run=run), text, run.tokenizer.encode(text))
    assert found["text"] == " the cat \n <unk>"
    begins = [row["begin"] for row in found["tokens"]]
    assert [found["text"][at:end] for at, end in pairwise(begins)] == [row["text"] for row in found["tokens"][:-1]]


def test_why_counts_an_unknown_character_as_one_of_the_text(tmp_path: Path):
    run = load_run(make_page_run(tmp_path / "my", kind="char"), "cpu")
    text = "the ☃🙂 cat"
    found = details.why(SimpleNamespace(run=run), text, run.tokenizer.encode(text))
    assert [row["begin"] for row in found["tokens"]] == list(range(len(text) + 1))


def test_surprises_count_ranks_from_one(runs: Path):
    run = load_run(runs / "base", "cpu")
    first, *rest, end = surprises(run.model, run.tokenizer.encode("a cat"), top=3)
    assert (first.loss, first.rank, first.likeliest) == (None, None, []) and end.rank is None
    assert all(row.rank and row.rank >= 1 and len(row.likeliest) == 3 for row in rest)


def test_a_part_is_switched_off_and_the_model_stays(client: Any, runs: Path):
    asked = {"model": "base@2", "text": PROMPT}
    plain, again = (client.post("/api/inside", json=asked).json() for _ in range(2))
    none = client.post("/api/inside", json=asked | {"factors": {"head 0.1": 1, "attention 1": 1}}).json()
    off = client.post("/api/inside", json=asked | {"factors": {"head 0.1": 0}}).json()
    assert plain == again == none and plain["loss"] != off["loss"] and plain["step"] == 2
    layers = {f"{part} {layer}": 0.0 for part in ("attention", "feed-forward") for layer in (0, 1)}
    assert max(client.post("/api/inside", json=asked | {"factors": layers}).json()["written_norm"][1]) == 0
    for wrong in ("head 0.9", "head 0", "attention 2", "attention 0.1", "../x"):
        answer = client.post("/api/inside", json=asked | {"factors": {wrong: 0}})
        assert answer.status_code == 400 and "no part" in answer.json()["error"]["message"]


NAMES = ["my book.txt", "../../my book.txt", "my/../book.md", "...", "\x00", "<b>.txt", f"红楼梦.{'長' * 190}.txt"]


def test_texts_are_sent_in_slices_and_looked_at(tmp_path: Path):
    runs, found = make_runs(tmp_path / "runs"), ""
    with served(runs) as address, httpx.Client(base_url=address, timeout=300) as client:
        for number, name in enumerate(NAMES):
            text = f"The cat {number} sat on the mat; the dog saw é.\n" * 50
            for begin, end in ((0, 1000), (1000, len(text))):
                part = {"name": name, "text": text[begin:end], "first": not begin, "done": end == len(text)}
                found = client.post("/api/texts", json=part).json()["text"]
            kept = tmp_path / "texts" / found.removeprefix("sent: ")
            assert kept.read_text() == text and re.fullmatch(r"[\w-]+\.txt", kept.name)
        assert len(list((tmp_path / "texts").iterdir())) == len(NAMES)
        assert found in client.get("/api/texts").json()["texts"]
        report = client.post("/api/inspect", json={"text": found}).json()
        assert sum(split["chars"] for split in report["splits"].values()) == len(text) and report["tokens"] is None
        report = client.post("/api/inspect", json={"text": found, "name": "base"}).json()
        assert sum(split["tokens"] for split in report["splits"].values()) == len(text)
        assert report["tokens"]["kind"] == "char" and report["duplicates"]["repeated"] == 49
        for wrong in (str(kept), "/etc/passwd", "sent: ../x"):
            assert client.post("/api/inspect", json={"text": wrong}).status_code == 404
            assert client.post("/api/start", json={"text": wrong, "name": "x"}).status_code == 404
        for wrong in ("../x", "base", "", ".x", "a/b", "a\\b"):
            assert client.post("/api/start", json={"text": found, "name": wrong}).status_code == 404


def test_two_runs_are_compared(client: Any):
    found = client.get("/api/differences", params={"name": ["base", "talks"]}).json()
    assert found["settings"] == {}


def test_a_run_is_deleted_with_its_files(tmp_path: Path):
    runs = make_runs(tmp_path / "runs")
    with served(runs) as address, httpx.Client(base_url=address) as client:
        assert client.post("/api/delete", json={"name": "talks"}).status_code == 200
        assert sorted(path.name for path in runs.iterdir()) == ["base"]
        assert [run["name"] for run in client.get("/api/runs").json()["runs"]] == ["base"]


def test_what_cannot_be_stopped_or_resumed_says_why(client: Any):
    for path, word in (("/api/stop", "no process"), ("/api/resume", "come to its end")):
        answer = client.post(path, json={"name": "base"})
        assert answer.status_code == 400 and word in answer.json()["error"]["message"]


def test_the_page_needs_no_key_and_what_it_asks_does(runs: Path):
    with served(runs, key="sesame", hosts=None) as address, httpx.Client(base_url=address) as client:
        assert client.get("/").status_code == client.get("/page/main.js").status_code == 200
        for path in ("/api/runs", "/api/run?name=base", "/v1/models"):
            assert client.get(path).status_code == 401
        assert client.get("/api/runs", headers={"Authorization": "Bearer sesame"}).status_code == 200


def test_settings_are_a_form_and_errors_are_those_of_the_command(client: Any, capsys: pytest.CaptureFixture[str]):
    sections = client.get("/api/form").json()["sections"]
    known = {f"{section}.{name}" for section, part in sections.items() for name in part["properties"]}
    assert {"train.max_steps", "model.dropout", "generation.stop"} <= known
    assert not known & {"data.source", "data.cache_dir", "tokenizer.path", "logging.runs_dir", "logging.name"}
    assert all(field["description"] for part in sections.values() for field in part["properties"].values())

    def checked(**settings: str) -> dict[str, Any]:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        return client.post("/api/check", json={"text": "stories", "name": "my", "settings": named}).json()

    good = checked(train__max_steps="30", generation__stop='["--a", "b"]', train__sample_prompt="--x\n")
    assert good["wrong"] == [] and "--train.max-steps=30" in good["line"]
    for settings in (
        {"train__max_steps": "many"},
        {"model__embed_dim": "30", "train__max_steps": "3"},
        {"train__seed": "["},
    ):
        flags = [f"--{name.replace('__', '.').replace('_', '-')}={value}" for name, value in settings.items()]
        assert main(["train", "stories", *flags]) == 2
        said = capsys.readouterr().err
        found = checked(**settings)["wrong"]
        assert found and found[0].partition(": ")[2] in said  # the command's message begins with the flag as typed
    taken = client.post("/api/check", json={"text": "stories", "name": "base"}).json()
    assert taken == {"wrong": ["there is a run base already; choose another name"], "unused": [], "line": ""}
    for path in ("data.source", "data.cache_dir", "finetune.base", "logging.runs_dir", "json", "../x"):
        asked = {"text": "stories", "name": "my", "settings": {path: "/etc/passwd"}}
        assert client.post("/api/check", json=asked).json()["wrong"] == [f"{path}: no such setting here"]
        assert client.post("/api/start", json=asked).status_code == 400
        assert client.post("/api/plan", json=asked).status_code == 400


def test_settings_without_effect_are_told_as_the_command_tells_them(client: Any):
    def told(budget: str = "", **settings: str) -> list[str]:
        named = {name.replace("__", "."): value for name, value in settings.items()}
        asked = {"text": "stories", "name": "my", "budget": budget, "settings": named}
        return client.post("/api/check", json=asked).json()["unused"]

    size = "tokenizer.vocab_size: no effect, since tokenizer.kind is char; it is for bpe or word"
    assert told(train__max_steps="3", tokenizer__vocab_size="300") == [size]
    assert told("5m", tokenizer__vocab_size="300") == []  # the text decides whether its tokenizer has pairs
    assert told("5m", tokenizer__vocab_size="300", tokenizer__kind="char") == [size]
    decay = "schedule.decay_fraction: no effect, since schedule.kind is {}; it is for trapezoidal"
    for budget in ("5m", ""):  # without a length, the budget is 5m too
        assert told(budget, schedule__decay_fraction="0.3") == [decay.format("linear")]
    assert told(train__max_steps="3", schedule__decay_fraction="0.3") == [decay.format("cosine")]
    assert told("5m", train__masked_weight="0.4") == []


def test_a_text_is_looked_at_with_the_tokenizer_of_a_run(client: Any, runs: Path, tmp_path: Path):
    found = client.post("/api/tokens", json={"name": "base", "text": PROMPT}).json()
    tokenizer = tokenizers.load(runs / "base")
    assert [row["id"] for row in found["tokens"]] == tokenizer.encode(PROMPT)
    assert bytes.fromhex("".join(row["bytes"] for row in found["tokens"])) == PROMPT.encode()
    assert (found["count"], found["bytes"], found["kind"]) == (len(PROMPT), len(PROMPT.encode()), "char")
    assert client.post("/api/tokens", json={"name": "base", "text": ""}).json()["tokens"] == []
    strange = client.post("/api/tokens", json={"name": "base", "text": "\u2603"}).json()["tokens"]
    assert [row["special"] for row in strange] == [True]
    assert client.post("/api/tokens", json={"name": "../base", "text": "a"}).status_code == 404


def test_the_bytes_of_a_text_are_those_that_the_tokens_hold(tmp_path: Path):
    run = read_run(make_runs(tmp_path) / "base")
    data = run.config.data.model_copy(update={"clean": ("ascii",)})
    found = details.tokens(replace(run, config=run.config.model_copy(update={"data": data})), "cat\u00e9\u2603")
    assert (found["count"], found["bytes"]) == (3, 3)


@pytest.mark.slow
def test_a_server_of_one_run_shows_the_runs_that_it_starts(tmp_path: Path):
    runs = make_runs(tmp_path / "runs")
    settings = {"model.embed_dim": "16", "model.num_layers": "1", "train.max_steps": "2", "train.device": "cpu"}
    with served(runs / "base") as address, httpx.Client(base_url=address, timeout=300) as client:
        text = {"name": "my.txt", "text": "The cat sat on the mat.\n" * 400, "first": True, "done": True}
        sent = client.post("/api/texts", json=text).json()
        asked = {**sent, "budget": "", "settings": settings, "name": "mine"}
        assert client.post("/api/start", json=asked).json() == {"name": "mine"}
        until(lambda: "finished" in [run["state"] for run in client.get("/api/runs").json()["runs"]
                                     if run["name"] == "mine"])  # fmt: skip
        until(lambda: "mine" in [card["id"] for card in client.get("/v1/models").json()["data"]])


def until(true: Any, seconds: float = 300.0) -> None:
    """Wait until the function returns true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not become true in time"
        time.sleep(0.05)


SETTINGS = {
    "model.embed_dim": "16", "model.num_layers": "1", "model.num_heads": "2", "model.max_seq_len": "16",
    "model.dropout": "0.1", "train.max_steps": "800", "train.batch_size": "4", "train.device": "cpu",
    "train.eval_every": "400", "train.eval_batches": "1", "train.save_every": "100", "train.sample_every": "300",
    "train.ema_decay": "0.9", "train.compile": "off", "model.attention": "sdpa", "generation.max_new_tokens": "5",
    "logging.log_every": "10", "logging.plots": "false", "recovery.spike_deviations": "0",
}  # fmt: skip
TEXT = "".join(f"The cat sat on mat {number} and saw {number * 7} dogs.\n" for number in range(1000))


def outcome(run: Path) -> dict[str, Any]:
    """What must be the same: the bytes of the last tensors, the figures without times, the samples."""
    last = run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "tokens_per_second", "mfu")
    return {
        "tensors": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in last.glob("*.safetensors")},
        "lines": [{key: value for key, value in line.items() if key not in times} for line in lines],
        "samples": (run / "samples.jsonl").read_text(),
    }


class Page:
    """Asks the routes of the page about the run `my`, at an address."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=address, timeout=120)

    def begin(self) -> None:
        """Send the text, and start the run; wait until it trains."""
        sent = self.post("/api/texts", name="my.txt", text=TEXT, first=True, done=True)
        assert self.post("/api/start", **sent, budget="", name="my", settings=SETTINGS) == {"name": "my"}
        until(lambda: [run for run in self.client.get("/api/runs").json()["runs"] if run["name"] == "my"])
        until(lambda: self.get()["last"] >= 20)

    def post(self, path: str, **asked: Any) -> Any:
        return self.client.post(path, json=asked).json()

    def get(self, path: str = "/api/figures") -> dict[str, Any]:
        return self.client.get(path, params={"name": "my"}).json()

    def state(self) -> str:
        figures = self.get()
        assert not figures["failed"]
        return figures["state"]

    def pid(self) -> int:
        return self.get("/api/run")["process"]["pid"]


def undisturbed(folder: Path) -> dict[str, Any]:
    """The result of the command alone with the same text and settings."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    words = [sys.executable, "-m", "minigpt", "train", str(folder / "texts" / "my.txt"), *flags, "--name", "alone"]
    subprocess.run(words, check=True, env=os.environ, capture_output=True)
    return outcome(folder / "runs" / "alone")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_run_is_started_stopped_and_resumed_as_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with served(tmp_path / "runs") as address:
        page = Page(address)
        page.begin()
        first = page.pid()
        assert page.client.post("/api/delete", json={"name": "my"}).status_code == 404
        assert page.post("/api/stop", name="my") == {"done": True}
        until(lambda: page.state() == "interrupted")
        assert page.get()["last"] < 800
        assert page.post("/api/resume", name="my") == {"done": True}
        assert page.client.post("/api/resume", json={"name": "my"}).status_code == 400
        assert page.client.post("/api/delete", json={"name": "my"}).status_code == 404
        until(lambda: page.state() == "running")
        assert page.pid() != first
        until(lambda: page.state() == "finished")
    assert outcome(tmp_path / "runs" / "my") == undisturbed(tmp_path)


@contextmanager
def server_process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The command's own server of runs/, and its address; killed at the end."""
    words = [sys.executable, "-m", "minigpt", "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr
        said = ""
        while not (found := re.search(r"http://127\.0\.0\.1:\d+", said)):
            said += process.stderr.readline()
        until(lambda: answers(found[0]))
        try:
            yield found[0], process
        finally:
            process.kill()


def answers(address: str) -> bool:
    """Whether a server is up."""
    try:
        return httpx.get(f"{address}/health").status_code == 200
    except httpx.ConnectError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_nothing_is_lost_when_server_and_run_are_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with server_process() as (address, server):
        page = Page(address)
        assert page.client.get("/api/runs").json()["runs"] == []  # runs/ does not exist yet
        page.begin()
        pid, before = page.pid(), page.get()["last"]
        server.kill()
    figures = tmp_path / "runs" / "my" / "metrics.jsonl"
    until(lambda: json.loads(figures.read_text().splitlines()[-1])["step"] > max(before, 250))  # the run continues
    os.kill(pid, signal.SIGKILL)
    with server_process() as (address, _):
        page = Page(address)
        until(lambda: page.state() == "interrupted")
        assert page.post("/api/resume", name="my") == {"done": True}
        until(lambda: page.state() == "finished")
    assert outcome(tmp_path / "runs" / "my") == undisturbed(tmp_path)


def test_a_checkpoint_that_was_just_deleted_is_left_out(tmp_path: Path) -> None:
    run = read_run(make_runs(tmp_path / "runs") / "base")
    whole, gone = run.checkpoints[-1], run.folder.checkpoints / "step-00000009"
    found = kept(run, whole)
    assert found is not None and found["step"] == 2 and found["bytes"] > 0
    assert kept(run, gone) is None


@pytest.mark.slow
def test_a_budget_is_planned_and_trained_as_by_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    text = "".join(f"The cat sat on mat {number} and saw {number * 7} dogs.\n" for number in range(3000))
    with served(tmp_path / "runs") as address, httpx.Client(base_url=address, timeout=300) as client:
        sent = client.post("/api/texts", json={"name": "my.txt", "text": text, "first": True, "done": True}).json()
        asked = {**sent, "budget": "6s", "settings": {"model.num_layers": "1"}}
        plan = client.post("/api/plan", json=asked).json()
        assert min(plan["predicted_loss"], plan["steps"], plan["parameters"], plan["memory_bytes"]) > 0
        late = client.post("/api/plan", json={**asked, "settings": {"train.max_steps": "3"}})
        assert late.json()["error"]["message"].startswith("--train.max-steps: --budget chooses")
        assert client.post("/api/start", json={**asked, "name": "mine"}).json() == {"name": "mine"}
        until(lambda: [run["state"] for run in client.get("/api/runs").json()["runs"]] == ["finished"])
        run = client.get("/api/run", params={"name": "mine"}).json()
        assert run["best_val_loss"] and "--budget 6s --model.num-layers=1 --name mine" in run["receipt"]["command"]
        client.post("/api/start", json={**sent, "budget": "soon", "name": "bad"})
        until(lambda: client.get("/api/runs").json()["begun"][0]["failed"])
        assert client.get("/api/runs").json()["begun"][0]["failed"].startswith("--budget: 'soon' is not a budget")
