"""Test what a person installs: the wheel and the source archive are complete; the wheel works without the repository.

The slow tests install the wheel into an empty virtual environment. To avoid downloads, the packages of the present
environment are added at the end of its path.
"""

import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import time
import tomllib
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest
from cli_run import SMALL

import minigpt
from minigpt.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FOR_DEVELOPERS = {"test", "docs", "notebooks"}
"""Extras of the repository, not of those who use minigpt."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the source archive of this tree."""
    pytest.importorskip("hatchling", reason="builds the wheel: make test installs it")
    out = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(out)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as held:
        (name,) = (name for name in held.namelist() if name.endswith(".dist-info/METADATA"))
        return email.message_from_string(held.read(name).decode())


def files_of(folder: Path, at: str) -> set[str]:
    """Every file of a folder of the tree, under the name that it has in the wheel."""
    kept = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {f"{at}/{path.relative_to(folder).as_posix()}" for path in kept}


# --- what is in the files ---


def test_the_wheel_has_the_package_with_its_data_and_nothing_else(wheel: Path):
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if ".dist-info/" not in name}
    wanted = files_of(ROOT / "minigpt", "minigpt") | files_of(ROOT / "recipes", "minigpt/recipes")
    assert names == wanted
    assert {Path(name).suffix for name in names} >= {
        ".py",
        ".c",
        ".h",
        ".js",
        ".css",
        ".html",
        ".svg",
        ".yaml",
        ".typed",
    }


def test_the_metadata_says_what_pyproject_says(metadata: Message, wheel: Path):
    assert wheel.name == f"minigpt-{minigpt.__version__}-py3-none-any.whl", "the version is the package's own"
    assert metadata["Version"] == minigpt.__version__
    assert metadata["Author"] == PROJECT["authors"][0]["name"] and metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == PROJECT["requires-python"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(metadata.get_all("Provides-Extra", [])) == set(PROJECT["optional-dependencies"])
    assert metadata.get_all("Classifier") == PROJECT["classifiers"]


def test_the_classifiers_are_known_to_the_index():
    known = pytest.importorskip("trove_classifiers", reason="comes with hatchling: make test installs it").classifiers
    assert not set(PROJECT["classifiers"]) - known


def test_the_source_archive_is_the_repository(built: Path):
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("the tree is not a git checkout")
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        names = {member.name.partition("/")[2] for member in held if member.isfile()}
    assert names == {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()} | {"PKG-INFO"}


def test_the_wheel_of_the_source_archive_is_the_same(built: Path, wheel: Path, tmp_path: Path):
    (archive,) = built.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        held.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    (again,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as one, zipfile.ZipFile(again) as other:
        assert {i.filename: i.CRC for i in one.infolist()} == {i.filename: i.CRC for i in other.infolist()}


def test_every_extra_is_listed_in_the_quickstart():
    rows = re.findall(r"^\| `([\w-]+)` \| .+ \|$", (ROOT / "docs/quickstart.md").read_text(encoding="utf-8"), re.M)
    assert sorted(rows) == sorted(set(PROJECT["optional-dependencies"]) - FOR_DEVELOPERS)


# --- the wheel alone ---


@pytest.fixture(scope="module")
def place(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder far from the repository, with an environment in it that holds the wheel; runs/demo is made there."""
    folder = tmp_path_factory.mktemp("person")
    venv.create(folder / "env", with_pip=True)
    said_by(folder, "python", "-m", "pip", "install", "--no-deps", "--no-index", str(wheel))
    where = sysconfig.get_path("purelib", vars={"base": str(folder / "env"), "platbase": str(folder / "env")})
    (Path(where) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    small = [*SMALL, "--train.max-steps", "20", "--tokenizer.vocab-size", "300", "--data.stories-count", "200"]
    said_by(folder, "minigpt", "demo", *small)
    return folder


def program(folder: Path, name: str) -> str:
    return str(folder / "env" / ("Scripts" if os.name == "nt" else "bin") / name)


def surroundings() -> dict[str, str]:
    """The environment without what leads back to the repository."""
    return {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}


def said_by(folder: Path, name: str, *words: str) -> str:
    """What a command of the environment prints, run in the folder."""
    done = subprocess.run(
        [program(folder, name), *words], cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_it_is_the_wheel_that_runs_there(place: Path):
    where = said_by(place, "python", "-c", "import minigpt; print(minigpt.__file__)").strip()
    assert Path(where).is_relative_to(place / "env")
    assert said_by(place, "minigpt", "--version") == f"minigpt {minigpt.__version__}\n"
    assert set(COMMANDS) <= set(re.findall(r"^ +([a-z]+) ", said_by(place, "minigpt", "--help"), re.M))
    listed = said_by(place, "minigpt", "config", "recipes")
    assert not [path.stem for path in (ROOT / "recipes").glob("*.yaml") if path.stem not in listed]


@pytest.mark.slow
def test_the_demo_left_a_run_that_can_be_used(place: Path):
    assert said_by(place, "minigpt", "generate", "demo", "--prompt", "Once upon a time", "--max-new-tokens", "5")
    report = json.loads(said_by(place, "minigpt", "eval", "demo", "--json"))
    assert 0 < report["bits_per_byte"] < 8


@pytest.mark.slow
def test_explain_and_the_exported_page_find_their_pages_and_scripts(place: Path):
    said_by(place, "minigpt", "explain", "demo", "--prompt", "Once upon a time", "--out", "why.html")
    said_by(place, "minigpt", "export", "demo", "--to", "page")
    for page in ("why.html", *(path.name for path in (place / "runs").glob("*.html"))):
        text = next(path for path in (place / page, place / "runs" / page) if path.exists()).read_text(encoding="utf-8")
        assert "<script" in text and "<style" in text


@pytest.mark.slow
def test_the_fix_that_messages_name_keeps_this_minigpt(place: Path):
    """`pip install 'minigpt[plot]'` adds an extra to what is installed; another project has the name on PyPI."""
    said = said_by(place, "python", "-m", "pip", "install", "--no-deps", "--no-index", "minigpt[plot]")
    assert "Requirement already satisfied: minigpt[plot]" in said and "Successfully installed" not in said


@pytest.fixture
def address(place: Path) -> Iterator[str]:
    """The address of `minigpt serve`, started from the wheel."""
    words = [program(place, "minigpt"), "serve", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(words, cwd=place, env=surroundings(), stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = ""
        while not (found := re.search(r"at (http://\S+)/v1", said)):
            line = process.stderr.readline()
            assert line, said
            said += line
        yield found[1]
        process.terminate()


@pytest.mark.slow
def test_the_server_answers_and_has_its_page(address: str, place: Path):
    assert "--host" in said_by(place, "minigpt", "serve", "--help")
    body = json.dumps({"model": "demo", "prompt": "Once", "max_tokens": 3}).encode()
    asked = urllib.request.Request(f"{address}/v1/completions", body, {"Content-Type": "application/json"})
    for _ in range(200):
        try:
            answer = json.load(urllib.request.urlopen(asked, timeout=60))
            break
        except ConnectionError:
            time.sleep(0.1)
        except urllib.error.URLError as error:
            assert isinstance(error.reason, ConnectionError), error
            time.sleep(0.1)
    else:
        pytest.fail("no answer in 20 seconds")
    assert answer["usage"]["completion_tokens"] == 3
    page = urllib.request.urlopen(f"{address}/", timeout=60).read().decode()
    for name in re.findall(r'(?:src|href)="(/?page/[^"]+)"', page):
        assert urllib.request.urlopen(f"{address}/{name.lstrip('/')}", timeout=60).read(), name
    assert "/page/" in page
