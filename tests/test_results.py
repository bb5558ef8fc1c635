"""Test RESULTS.md and the history of measurements: both parse, each row has its measurement, old rows are found."""

import importlib.util
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = (ROOT / "RESULTS.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?(?![\w-])")


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module of benchmarks/, which is not a package."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, made)
    spec.loader.exec_module(made)
    return made


@pytest.fixture
def history(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    return script("history", monkeypatch)


@pytest.fixture
def stale(history: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("stale", monkeypatch)


def test_the_results_are_short_and_begin_with_what_is_missing():
    lines = RESULTS.splitlines()
    assert len(lines) <= 120 and max(map(len, lines)) <= 300
    assert re.findall(r"^## (.+)", RESULTS, re.M)[:2] == ["Not measured", "Machines"]


def test_each_row_has_a_machine_and_a_measurement_in_the_history(history: ModuleType):
    rows, known = history.results(), history.history()
    assert len(rows) == len(re.findall(r"\| [0-9a-f]{7} \|$", RESULTS, re.M)) > 60
    machines = set(re.findall(r"^\| ([A-Z]\w+(?: \d)?|any) \| [^|]+ \|$", RESULTS, re.M))
    for row in rows:
        assert row.machine.removesuffix(", one core") in machines, row
        assert row.command.startswith("`") or row.command in ("the same", "see history"), row
        assert history.measured(row, known), f"no line of history.jsonl has this figure at this commit: {row}"


def test_every_figure_of_the_readme_is_one_of_a_row():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(readme.splitlines()) <= 120 and max(map(len, readme.splitlines())) <= 300
    told = re.sub(
        r"```(?:sh|python)\n.*?```|## Compared with other tools.*?(?=^## )|\]\([^)]*\)", "", readme, flags=re.S | re.M
    )
    rows = {number for line in RESULTS.splitlines() if line.startswith("|") for number in NUMBER.findall(line)}
    decimals = {number for number in NUMBER.findall(told) if "." in number} - {"3.11", "1.5"}  # Python 3.11, 1.5 GB
    results = readme.partition("## Results")[2].partition("## More")[0]
    figures = {number for row in re.findall(r"^\|.+\| (.+) \|$", results, re.M) for number in NUMBER.findall(row)}
    assert len(decimals) > 10 and len(figures) > 15
    assert not (decimals | figures) - rows


def test_the_readmes_pictures_are_those_that_a_test_draws():
    pictures = re.findall(
        r"!\[[^]]+\]\((docs/img/workbench-\w+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8")
    )
    drawn = (ROOT / "tests/serve/test_workbench_page.py").read_text(encoding="utf-8")
    parts = re.search(r'for part in \(("\w+"(?:, "\w+")+)\):', drawn)
    assert parts and pictures
    for picture in pictures:
        assert (ROOT / picture).read_bytes().startswith(b"\x89PNG")
        assert f'"{Path(picture).stem.removeprefix("workbench-")}"' in parts[1]


def test_a_figure_that_was_never_measured_would_be_found(history: ModuleType):
    row, known = history.Row("Start", "demo", "`minigpt demo`", "Zen 3", "96 s", "06f1897"), history.history()
    assert history.measured(row, known)
    for other in ("95.9 s", "69 s", "9.6 s"):
        assert not history.measured(history.Row(*[*list(vars(row).values())[:4], other, row.commit]), known)
    assert not history.measured(history.Row(*[*list(vars(row).values())[:5], "f7b388c"]), known)
    assert history.first_number("4,046 tokens/s") == (4046, 0)
    assert history.first_number("7.2e-07 at most") == (7.2e-7, 1)
    with pytest.raises(ValueError, match="does not begin"):
        history.first_number("about 3")


def test_every_measurement_is_whole_and_in_order(history: ModuleType):
    known = history.history()
    assert len(known) > 250
    optional = {"values", "also", "note"}
    for one in known:
        assert set(history.KEYS) <= set(one) <= set(history.KEYS) | optional, one
        assert isinstance(one["figure"], int | float) and re.fullmatch(r"[0-9a-f]{7}", one["commit"])
        assert all(isinstance(one[key], str) and one[key] for key in history.KEYS if key != "figure")
    dates = [datetime.fromisoformat(one["date"]) for one in known]
    assert dates == sorted(dates)
    assert len({tuple(map(str, one.items())) for one in known}) == len(known), "no line is repeated"


def test_commits_of_measurements_are_in_the_repository(history: ModuleType):
    command = ["git", "rev-list", "--abbrev-commit", "--abbrev=7", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode or (ROOT / ".git" / "shallow").exists():
        pytest.skip("needs the whole history of git")
    there = {line[:7] for line in done.stdout.split()}
    assert not {one["commit"] for one in history.history()} - there


def test_the_pictures_are_of_todays_history(history: ModuleType, tmp_path: Path):
    made = ROOT / "docs" / "normal-loss.svg"
    history.save(history.draw_normal(history.history()), tmp_path / made.name)
    labels = re.compile(r">([^<>]+)</text>")
    assert labels.findall(made.read_text(encoding="utf-8")) == labels.findall((tmp_path / made.name).read_text())
    drawn = (ROOT / "docs" / "history.svg").read_text(encoding="utf-8")
    for claim, title in history.DRAWN.items():
        points = [one for one in history.history() if one["claim"] == claim]
        assert len(points) > 2 and title in drawn
        newest = {history.machine(one["hardware"]): f"{one['figure']:g}" for one in points}
        assert not [figure for figure in newest.values() if f">{figure}<" not in drawn], "draw the picture again"


def test_drawing_takes_a_machine_without_a_colour(history: ModuleType, tmp_path: Path):
    other = {"claim": "demo, start to end", "date": "2027-01-01T12:00", "hardware": "a new one", "figure": 12.5}
    history.save(history.draw([*history.history(), other]), tmp_path / "a.svg")
    history.save(history.draw([*history.history(), other]), tmp_path / "b.svg")
    assert ">12.5<" in (tmp_path / "a.svg").read_text() == (tmp_path / "b.svg").read_text()


def test_what_each_claim_depends_on_is_there(stale: ModuleType, history: ModuleType):
    assert not [path for _, paths in stale.DEPENDS for path in paths if not (ROOT / path).exists()]
    rows = [(row, claim) for row, claim in stale.full_claims(history.results()) if "`pytest" not in row.command]
    assert [claim for row, claim in rows if not stale.paths(claim)] == ["loss before the first step"]


def test_rows_older_than_their_code_are_found(stale: ModuleType, history: ModuleType, tmp_path: Path):
    def git(*words: str) -> str:
        named = ["-c", "user.name=x", "-c", "user.email=x@x", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *named, *words], cwd=tmp_path, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    def change(path: str) -> str:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(path)
        git("add", ".")
        git("commit", "--no-verify", "-m", path)
        return git("rev-parse", "HEAD")

    git("init", "-q")
    first = change("minigpt/tokenizers/bpe.py")
    change("minigpt/serve/api/app.py")
    change("minigpt/tokenizers/char.py")
    second = change("docs/index.md")
    rows = [history.Row("Speed", "BPE encoding", "`x`", "any", "1", commit) for commit in (first, second)]
    rows.append(history.Row("Speed", "BPE proof", "`pytest tests`", "any", "1", first))
    assert stale.stale(rows, tmp_path) == [(1, "BPE encoding", rows[0])]
    rows[1] = history.Row("Speed", "the same", "`x`", "any", "1", first)
    assert [claim for _, claim in stale.full_claims(rows)] == ["BPE encoding", "BPE encoding:: the same", "BPE proof"]


def test_the_gallery_is_made_of_its_measurements(history: ModuleType, monkeypatch: pytest.MonkeyPatch):
    gallery = script("gallery", monkeypatch)
    lines = gallery.read()
    assert gallery.PAGE.read_text(encoding="utf-8") == gallery.page(lines)
    assert {line["text"] for line in lines} == set(gallery.TEXTS)
    shown = " ".join(gallery.page(lines).split())
    assert all(" ".join(line["sample"].split()) in shown for line in lines)
