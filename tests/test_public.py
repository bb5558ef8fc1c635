"""Test the files that a public forge reads: each parses, and agrees with the project.

Versions, Python releases, extras, make targets and tests that they name must be those of constraints.txt,
pyproject.toml, the Makefile and tests/. An image is built if a container builder answers. The lines of the Dockerfile
are always checked.
"""

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

import minigpt
from minigpt.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CONSTRAINTS = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M))
PYTHONS = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
FORMS = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config")
INSTRUCTIONS = set("FROM RUN COPY WORKDIR USER EXPOSE ENTRYPOINT CMD ENV".split())
CFF_KEYS = {"cff-version", "message", "title", "authors"}
"""What version 1.2.0 of the Citation File Format requires."""


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


def parsed(path: str) -> dict[Any, Any]:
    found = yaml.safe_load(read(path))
    assert isinstance(found, dict)
    return found


def steps() -> list[dict[str, Any]]:
    """Every step of every job of the workflow."""
    return [step for job in parsed(".github/workflows/test.yml")["jobs"].values() for step in job["steps"]]


def dockerfile() -> list[tuple[str, str]]:
    """(instruction, rest) of each, lines that end with a backslash joined."""
    lines = [line for line in read("Dockerfile").splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())]


def named_extras(text: str) -> set[str]:
    """The extras that pip is asked for: `".[plot,serve]"` -> {"plot", "serve"}."""
    return {extra for group in re.findall(r"\.\[([\w,-]+)\]", text) for extra in group.split(",")}


# --- continuous integration ---


def test_the_workflow_runs_on_three_systems_with_the_oldest_and_the_newest_python():
    jobs = parsed(".github/workflows/test.yml")["jobs"]
    assert set(jobs["make"]["strategy"]["matrix"]["os"]) | {jobs["windows"]["runs-on"]} == {
        "ubuntu-latest", "macos-latest", "windows-latest"
    }  # fmt: skip
    assert PROJECT["requires-python"] == f">={PYTHONS[0]}"
    for job in ("make", "windows"):
        assert jobs[job]["strategy"]["matrix"]["python"] == [PYTHONS[0], PYTHONS[-1]]
    assert jobs["docs"]["steps"][1]["with"]["python-version"] in PYTHONS
    assert set(parsed(".github/workflows/test.yml")[True]) == {"push", "pull_request"}, "YAML 1.1 reads `on` as true"


def test_every_command_of_the_workflow_is_real():
    targets = re.findall(r"^([a-z-]+):", read("Makefile"), re.M)
    ran = [shlex.split(step["run"]) for step in steps() if "run" in step]
    for words in ran:
        if words[0] == "make":
            assert words[1] in targets
            assert {word.split("=")[0] for word in words[2:]} <= set(re.findall(r"^(\w+) \?=", read("Makefile"), re.M))
        else:
            assert words[:2] == ["python", "-m"] and words[2] in ("pip", "pytest", "minigpt")
            assert words[2] != "minigpt" or words[3] in COMMANDS
    installed = [words for words in ran if "pip" in words]
    assert installed and all(words[-2:] == ["-c", "constraints.txt"] for words in installed)
    assert [words[1] for words in ran if words[0] == "make"] == ["test", "docs"]


def test_windows_can_import_every_test_module():
    """What only POSIX has is imported by importorskip, else pytest stops there before the first test."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        body = ast.parse(path.read_text(encoding="utf-8")).body
        names = {alias.name for node in body if isinstance(node, ast.Import) for alias in node.names}
        assert not names & {"fcntl", "grp", "pty", "pwd", "resource", "termios"}, path


def test_text_has_the_same_bytes_in_every_checkout():
    """Git for Windows would end lines with CR LF; hashes of files and fixtures of tests would change."""
    assert read(".gitattributes") == "* text=auto eol=lf\n"


def test_actions_are_pinned_and_may_only_read():
    used = [step["uses"] for step in steps() if "uses" in step]
    assert used and all(re.fullmatch(r"actions/[a-z-]+@v\d+", name) for name in used)
    assert parsed(".github/workflows/test.yml")["permissions"] == {"contents": "read"}


def test_the_hooks_have_the_versions_that_the_tests_have():
    for repository in parsed(".pre-commit-config.yaml")["repos"]:
        tool = repository["repo"].rpartition("/")[2].removesuffix("-pre-commit")
        assert repository["rev"] == f"v{CONSTRAINTS[tool]}"
        assert [hook["id"] for hook in repository["hooks"]] == ["ruff-check", "ruff-format"]


def test_extras_that_are_named_exist():
    files = ("Dockerfile", ".github/workflows/test.yml", "Makefile", "docs/howto/windows.md", "docs/quickstart.md")
    for name in files:
        assert named_extras(read(name)) <= set(PROJECT["optional-dependencies"]), name
    assert named_extras(read("Dockerfile")) == {"plot", "serve"}, "what `make install` installs"


@pytest.mark.skipif(sys.platform != "linux" or not shutil.which("make"), reason="needs Linux and make")
@pytest.mark.parametrize(
    ("gpu", "flags", "small"), [(False, [], True), (True, [], False), (False, ["TORCH_INDEX="], False)]
)
def test_cuda_is_downloaded_only_where_there_is_a_gpu(gpu: bool, flags: list[str], small: bool, tmp_path: Path):
    if Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi"):
        pytest.skip("this machine has an NVIDIA GPU")
    if gpu:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "TORCH_INDEX")}
    environment["PATH"] = f"{tmp_path}:{environment['PATH']}"
    command = ["make", "-n", "install", f"VENV={tmp_path / 'venv'}", *flags]
    said = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout
    (torch,) = (line for line in said.splitlines() if "install torch" in line)
    assert torch.endswith(" --extra-index-url https://download.pytorch.org/whl/cpu") == small


# --- what people send ---


@pytest.mark.parametrize("form", FORMS, ids=lambda path: path.stem)
def test_an_issue_form_is_one_that_a_forge_can_show(form: Path):
    found = yaml.safe_load(form.read_text(encoding="utf-8"))
    assert set(found) == {"name", "description", "labels", "body"} and found["name"] and found["description"]
    needs = {"markdown": {"value"}, "checkboxes": {"label", "options"}, "dropdown": {"label", "options"}}
    for part in found["body"]:
        assert part["type"] in {"markdown", "textarea", "input", "dropdown", "checkboxes"}
        assert set(part["attributes"]) >= needs.get(part["type"], {"label", "description"})
        assert part["type"] == "markdown" or re.fullmatch(r"[a-z]+", part["id"])
    ids = [part["id"] for part in found["body"] if "id" in part]
    assert len(ids) == len(set(ids))
    doctor = next(part for part in found["body"] if part.get("id") == "doctor")
    assert "`minigpt doctor --json`" in doctor["attributes"]["description"]


def test_reports_of_faults_must_say_what_the_doctor_says():
    must = {form.stem: str(yaml.safe_load(form.read_text(encoding="utf-8"))["body"]) for form in FORMS}
    assert set(must) == {"bug", "slow_or_worse", "idea"}
    for stem in ("bug", "slow_or_worse"):
        body = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{stem}.yml").read_text(encoding="utf-8"))["body"]
        assert next(part for part in body if part.get("id") == "doctor")["validations"] == {"required": True}
    assert parsed(".github/ISSUE_TEMPLATE/config.yml") == {"blank_issues_enabled": False}


def test_files_and_commands_that_the_templates_name_are_there():
    texts = [form.read_text(encoding="utf-8") for form in FORMS]
    texts += [read(name) for name in (".github/pull_request_template.md", "SECURITY.md", ".github/workflows/test.yml")]
    files = {name for text in texts for name in re.findall(r"(?<![\w./])[\w/.-]+\.(?:md|py|txt|jsonl)\b", text)}
    files -= {"receipt.json"}
    assert "RESULTS.md" in files and not [name for name in files if not (ROOT / name).is_file()]
    named = {word for text in texts for word in re.findall(r"`minigpt ([a-z]+)", text)}
    assert "doctor" in named and named <= set(COMMANDS)


def test_each_promise_is_held_by_a_test_that_is_there():
    rows = re.findall(r"^\| (?!promise|---)(.+) \| `(tests/\S+\.py)::(\w+)` \|$", read("SECURITY.md"), re.M)
    assert len(rows) == read("SECURITY.md").count("::") > 15
    for promise, path, name in rows:
        body = ast.parse(read(path)).body
        assert name in [node.name for node in body if isinstance(node, ast.FunctionDef)], promise


def test_the_citation_agrees_with_the_package():
    found = parsed("CITATION.cff")
    assert found.keys() >= CFF_KEYS and found["cff-version"] == "1.2.0"
    assert found["type"] == "software" and found["title"] == PROJECT["name"] and found["license"] == PROJECT["license"]
    assert str(found["version"]) == minigpt.__version__
    assert [author["name"].lower() for author in found["authors"]] == [
        author["name"].lower() for author in PROJECT["authors"]
    ]
    assert str(found["abstract"]).split() == PROJECT["description"].split()


# --- containers ---


def test_the_dockerfile_names_what_is_there():
    lines = dockerfile()
    assert lines[0][0] == "FROM" and {word for word, _ in lines} <= INSTRUCTIONS
    python = re.fullmatch(r"python:(3\.\d+)-slim", lines[0][1])
    assert python and python[1] in PYTHONS
    for word, rest in lines:
        if word == "COPY":
            assert all((ROOT / name).exists() for name in rest.split()[:-1]), rest
        if word in ("ENTRYPOINT", "CMD"):
            assert isinstance(json.loads(rest), list)
        if word == "RUN" and "pip install" in rest:
            assert "-c constraints.txt" in rest and "--no-cache-dir" in rest
    copied = {name for word, rest in lines if word == "COPY" for name in rest.split()[:-1]}
    assert copied >= {"minigpt", "recipes", "pyproject.toml", str(PROJECT["readme"]), "LICENSE"}, "what the wheel needs"
    assert dict(lines)["USER"] not in ("root", "0")
    assert json.loads(dict(lines)["ENTRYPOINT"]) == [next(iter(PROJECT["scripts"]))]


def test_the_development_container_has_our_python_and_target():
    found = json.loads(read(".devcontainer/devcontainer.json"))
    assert found["image"].rpartition(":")[2] in PYTHONS
    make, target = found["postCreateCommand"].split()
    assert make == "make" and re.search(rf"^{target}:", read("Makefile"), re.M)
    assert [str(port) for port in found["forwardPorts"]] == list(found["portsAttributes"]) == ["8000"]


def builder() -> str | None:
    """A program that builds images here: installed, and answered by its service."""
    for name in ("docker", "podman"):
        if shutil.which(name) and subprocess.run([name, "info"], capture_output=True, timeout=60).returncode == 0:
            return name
    return None


@pytest.mark.slow
def test_the_image_builds_and_says_its_version():
    name = builder()
    if name is None:
        pytest.skip("no container builder answers here: install docker or podman, and start it")
    subprocess.run([name, "build", "--tag", "minigpt-test", str(ROOT)], check=True, timeout=1800)
    done = subprocess.run(
        [name, "run", "--rm", "minigpt-test", "--version"], check=True, timeout=120, capture_output=True, text=True
    )
    assert done.stdout.strip() == f"minigpt {minigpt.__version__}"
