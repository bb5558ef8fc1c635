"""Test the documentation: pages are complete, the names in them exist, the commands in them run.

The commands of README and the quickstart run in order, in one folder with a small `my.txt`. They are changed only
to be small: TINY is appended to commands that train (a later flag wins), commands that write get a few tokens, and
`my.txt` replaces a recipe's data. A command with --budget makes its plan, then runs without --budget. torchrun starts
only one process. `make TARGET` must be a target, but its commands are not run. The doctor, which has its own tests,
only prints its help. Blocks after a comment `not run: why` need a GPU, several devices or PowerShell: only their
commands and flags are checked.
"""

import importlib.util
import inspect
import io
import json
import math
import ntpath
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import pytest
from cli_run import text

import minigpt
from minigpt.cli import COMMANDS, main
from minigpt.config import RunConfig
from minigpt.generation.sampling.processors import top_p
from minigpt.model.loss import next_token_loss
from minigpt.model.parts import Attention
from minigpt.weights.checkpoint import verify

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
assert _spec and _spec.loader
site = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(site)

SOURCES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TINY = (
    "--train.max-steps 4 --train.batch-size 4 --train.eval-every 2 --train.eval-batches 1 --train.sample-every 0 "
    "--train.compile off --train.device cpu --train.precision fp32 --schedule.warmup-steps 1 --logging.plots false"
).split()
TINY_MODEL = (
    "--model.embed-dim 64 --model.num-heads 2 --model.num-layers 1 --model.max-seq-len 32 --data.stories-count 60 "
    "--tokenizer.vocab-size 300"
).split()
RECIPE = """\
model: {embed_dim: 32, num_heads: 2, num_layers: 1, max_seq_len: 32}
train: {batch_size: 4, eval_every: 2, device: cpu, precision: fp32}
"""
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>.+?) -->\n)?(?P<pad> *)```(?P<kind>\w+)\n(?P<code>.*?)^(?P=pad)```", re.S | re.M
)


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every page as zensical gets it."""
    return site.pages()


def blocks(path: Path, kind: str, marked: bool = False) -> Iterator[str]:
    """The code of fenced blocks of a kind: those that are not marked as not run, or, with `marked`, only those."""
    for found in BLOCK.finditer(path.read_text(encoding="utf-8")):
        if found["kind"] == kind and bool(found["why"]) == marked:
            yield found["code"]


def commands(code: str) -> Iterator[list[str]]:
    """The words of each command; of a pipeline its `minigpt` part, if there is one."""
    for line in code.splitlines():
        parts = [shlex.split(part, comments=True) for part in re.split(r" \| ", line)]
        words = next((part for part in parts if "minigpt" in part[:1]), parts[0])
        if words:
            yield words


# --- the names in the pages exist ---


def test_pages_are_complete_and_each_is_in_the_navigation(pages: dict[str, str]):
    assert not [name for name, page in pages.items() if re.search(r"^\s*\{\{ ", page, re.M)]
    navigation = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]["nav"]
    listed = re.findall(r"'([\w/-]+\.md)'", str(navigation))
    assert sorted(listed) == sorted(pages)


def test_included_source_is_what_python_has():
    for path, name, real in (
        ("minigpt/model/loss.py", "next_token_loss", next_token_loss),
        ("minigpt/model/parts.py", "Attention", Attention),
        ("minigpt/model/parts.py", "Attention.forward", Attention.forward),
        ("minigpt/generation/sampling/processors.py", "top_p", top_p),
        ("minigpt/weights/checkpoint.py", "verify", verify),
    ):
        made = site.source(path, name, "how/x.md")
        lines, first = inspect.getsourcelines(real)
        assert made.splitlines()[1:-1] == inspect.cleandoc("\n" + "".join(lines)).splitlines()
        assert f"lines {first} to {first + len(lines) - 1}" in made.splitlines()[0]


def test_links_are_the_same_where_paths_have_backslashes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(site, "os", SimpleNamespace(path=ntpath))
    told = "[a](../budget.md#rule) ![b](img/b.png) [c](../../RESULTS.md) [`d`](../../Makefile) [e](https://x.org/y)"
    made = "[a](../budget.md#rule) ![b](img/b.png) [c](../results.md) `d` [e](https://x.org/y)"
    assert site.relink(told, "docs/howto/mac.md", "howto/mac.md") == made


@pytest.mark.parametrize(
    "line",
    [
        "source minigpt/model/loss.py no_such_loss",
        "source minigpt/moved.py x",
        "file moved.yaml",
        "section README.md Moved",
    ],
)
def test_what_was_moved_is_an_error_that_names_page_and_line(line: str):
    with pytest.raises(site.PageError, match=r"docs/how/x\.md:2"):
        site.expand(f"One\n{{{{ {line} }}}}\n", "how/x.md")


def test_the_reference_has_every_setting_command_and_public_name(pages: dict[str, str]):
    settings, shown = pages["reference/settings.md"], pages["reference/commands.md"]
    for section, field in RunConfig.model_fields.items():
        for name, info in type(field.default).model_fields.items():
            row = next(line for line in settings.splitlines() if line.startswith(f"| `{section}.{name}`"))
            assert info.description and site.cell(info.description) in row
    for command in COMMANDS:
        assert f"## minigpt {command} " in shown
        assert f"usage: minigpt {command}" in shown
    for words in ("tokenizer compare", "bench train"):
        assert f"### minigpt {words} " in shown
    names = re.findall(r"^::: minigpt\.(\w+)$", pages["reference/python.md"], re.M)
    assert {*names, "__version__"} == set(minigpt.__all__)


def test_commands_and_flags_in_the_docs_are_real():
    wrong, count = [], 0
    for path in SOURCES:
        shown = [*blocks(path, "sh"), *blocks(path, "sh", marked=True), *blocks(path, "powershell", marked=True)]
        shown += re.findall(r"`(minigpt [a-z][^`\n]*)`", path.read_text(encoding="utf-8"))
        for words in (words for code in shown for words in commands(code)):
            if words[0] == "torchrun":
                words = words[words.index("-m") + 1 :]
            if words[0] != "minigpt" or len(words) < 2 or words[1].isupper():
                continue
            count += 1
            wrong += [f"{path.name}: {shlex.join(words)}: {what}" for what in unknown(words[1:])]
    assert not wrong
    assert count > 100


def unknown(words: list[str]) -> Iterator[str]:
    """Names in a command line that do not exist."""
    command = words[0]
    if command not in COMMANDS:
        if command not in ("--help", "--version"):
            yield command
        return
    known = site.command_help(command)
    if len(words) > 1 and words[1] in site.subcommands(command):
        known += site.command_help(command, words[1])
    for flag in (word.split("=")[0] for word in words[1:] if word.startswith("--")):
        if flag not in re.findall(r"--[\w.-]+", known):
            yield flag


def test_a_wrong_flag_would_be_found():
    assert list(unknown(["train", "my.txt", "--train.max-step", "3"])) == ["--train.max-step"]
    assert list(unknown(["trian", "my.txt"])) == ["trian"]


def test_settings_named_in_the_text_are_real():
    fields = {section: type(field.default).model_fields for section, field in RunConfig.model_fields.items()}
    known = {f"{section}.{name}" for section, names in fields.items() for name in names}
    named = re.compile(rf"`((?:{'|'.join(RunConfig.model_fields)})\.[a-z_]+)`")
    said = {name for path in SOURCES for name in named.findall(path.read_text(encoding="utf-8"))}
    assert len(said) > 30
    assert not said - known - {"tokenizer.json", "tokenizer.bin", "model.safetensors"}


def test_links_to_elsewhere_are_well_formed(pages: dict[str, str]):
    targets = {link for page in pages.values() for link in re.findall(r"\]\((\w+:[^)]*)\)", page)}
    for target in targets:
        parts = urlsplit(target)
        assert parts.scheme == "https" and re.fullmatch(r"([a-z0-9-]+\.)+[a-z]{2,}", parts.netloc), target
    assert targets


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("troubleshooting.md", "Is my loss normal?"),
        ("howto/normal-loss.md", "The first step"),
        ("howto/normal-loss.md", "Simpler models"),
        ("howto/normal-loss.md", "Each recipe"),
        ("howto/normal-loss.md", "During a run"),
        ("howto/normal-loss.md", "A text of your own, in some minutes"),
        ("teaching.md", "45 minutes: what does a language model do?"),
        ("index.md", "What to expect"),
        ("howto/quantise.md", "Quantise"),
        ("howto/generate.md", "Faster"),
    ],
)
def test_figures_were_measured(page: str, heading: str):
    said = re.findall(r"(?<![\w.])\d+\.\d+(?![\w.])", site.section(f"docs/{page}", heading, page))
    measured = [(ROOT / name).read_text(encoding="utf-8") for name in ("RESULTS.md", "benchmarks/history.jsonl")]
    known = re.findall(r"\d+\.\d+", "\n".join(measured))
    near = {f"{math.log(size):.1f}" for size in (65, 1536, 50257)} | {f"{float(number):.3f}" for number in known}
    defaults = {str(value) for value in (0.05, 0.9, 1.0, 1.2)}  # defaults of flags on the page, and 0.9 M parameters
    assert said
    assert not set(said) - set(known) - near - defaults


# --- what they show runs ---


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the pages name: texts, prompts, records, recipes, but without the person's own
    settings.
    """
    told = "Once upon a time, the End.\n" * 20 + text(300)
    for name in ("my.txt", "more.txt", "notes/one.txt", "notes/two.txt", "books/one.txt", "books/two.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(told.replace("End", name.split(".")[0]))
    (tmp_path / "many.txt").write_text("Once upon\nThe\n")
    (tmp_path / "start.txt").write_text("Once upon")
    (tmp_path / "posts.jsonl").write_text("".join(json.dumps({"body": line * 3}) + "\n" for line in told.splitlines()))
    for name, answers in (("qa", ("completion",)), ("pairs", ("chosen", "rejected"))):
        records = [{"prompt": f"the {word}"} | dict.fromkeys(answers, " sat.") for word in told.split()[:60]]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MINIGPT_CONFIG", str(tmp_path / "config"))
    return tmp_path


def small(words: list[str]) -> list[str]:
    """The same command, made small."""
    command = words[0]
    if command == "doctor":
        return [command, "--help"]
    if "--budget" in words:  # `run` tests the plan separately
        at = words.index("--budget")
        words = [*words[:at], *words[at + 2 :]]
    if command == "sweep":
        return [*words, *TINY_MODEL, *TINY, "--data.source", "my.txt"]
    if command in ("train", "demo"):
        longer = ["--train.max-steps", "6"] if "--resume" in words else []  # a length that has ended is refused
        tiny = [*TINY_MODEL, *TINY, *longer]
        recipe = any(word.startswith("recipes/") for word in words)
        return [*words, *tiny, *(["--data.source", "my.txt"] if recipe else [])]
    extra = {
        "finetune": [] if "--merge" in words else TINY,
        "generate": ["--max-new-tokens", "8"],
        "chat": ["--max-new-tokens", "8"],
    }
    if command == "data" and "--count" in words:
        words = [*words[: words.index("--count") + 1], "60", *words[words.index("--count") + 2 :]]
    return [*words, *extra.get(command, [])]


def run(words: list[str]) -> None:
    """Run one command, with a text as input, or check a command that cannot run here."""
    if words[0] == "torchrun":  # tests/runs/test_parallel_runs.py starts several
        words = words[words.index("-m") + 1 :]
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert words[1] in targets
        return
    if words == [".", ".venv/bin/activate"]:
        return
    assert words[0] == "minigpt", words
    if "--budget" in words:
        assert main([*words[1:], "--budget", "30s", "--dry-run"]) == 0, shlex.join(words)
    argv = small(words[1:])
    piped = {"chat": "Once\n/quit\n", "generate": "Once upon"}.get(argv[0], Path("my.txt").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(piped.encode())))
        try:
            code = main(argv)
        except SystemExit as ended:  # --help
            code = ended.code or 0
    assert code == 0, shlex.join(argv)


def test_the_readmes_first_commands_run(here: Path):
    code = next(code for code in blocks(ROOT / "README.md", "sh") if "minigpt train my.txt" in code)
    for words in commands(code):
        run(words)
    assert (here / "runs" / "my" / "plots" / "explain.html").is_file()


NEWCOMER = ("README.md", "docs/quickstart.md", "docs/tutorial.md", "docs/teaching.md", "docs/cheat-sheet.md")
HOW_TO = ("own-data", "tokenizers", "resume", "generate", "evaluate", "finetune", "quantise", "export", "low-memory")


@pytest.mark.slow
@pytest.mark.parametrize("page", [*NEWCOMER, *(f"docs/howto/{name}.md" for name in HOW_TO)])
def test_every_command_of_the_page_runs(page: str, here: Path):
    if page in ("README.md", "docs/cheat-sheet.md"):
        run(["minigpt", "demo"])  # README's first line, `make demo`
    if page not in NEWCOMER:  # a how-to page assumes that these exist
        run(["minigpt", "train", "my.txt"])
        for name in ("small", "large"):
            shutil.copytree(here / "runs" / "my", here / "runs" / name)
    shown = [words for code in blocks(ROOT / page, "sh") for words in commands(code)]
    for words in shown:
        run(words)
    assert len(shown) > 1
    print(f"\n{page}: {len(shown)} commands")
    for code in blocks(ROOT / page, "python") if page != "README.md" else ():  # README's: tests/test_api.py
        made_small = code.replace('"shakespeare-char"', '"recipe.yaml"').replace("300", "4").replace("50", "8")
        exec(compile(made_small, page, "exec"), {})


# --- the site ---


class Links(HTMLParser):
    """The links of a page, the files that it loads, and the anchors that links may point to."""

    def __init__(self, page: str):
        super().__init__()
        self.targets: list[str] = []
        self.loaded: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.anchors |= {value for key in ("id", "name") if (value := found.get(key))}
        if tag == "a" and found.get("href"):
            self.targets.append(str(found["href"]))
        loads = found.get("href") if tag == "link" and found.get("rel") != "canonical" else found.get("src")
        self.loaded += [loads] if loads and tag in ("link", "script", "img", "iframe") else []


def zensical(place: Path) -> subprocess.CompletedProcess[str]:
    """Build the site of the pages in a folder."""
    shutil.copyfile(ROOT / "zensical.toml", place / "zensical.toml")
    (place / "minigpt").symlink_to(ROOT / "minigpt")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    return subprocess.run(command, cwd=place, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_every_link_leads_somewhere(tmp_path: Path):
    count = site.build(tmp_path / "build" / "docs")
    done = zensical(tmp_path)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "No issues found" in said
    assert not re.search(r"warning|error|could not", said, re.I), said
    root = tmp_path / "build" / "site"
    found = {
        path.relative_to(root).as_posix(): Links(path.read_text(encoding="utf-8")) for path in root.rglob("*.html")
    }
    broken, links = [], 0
    for name, page in found.items():
        assert not [target for target in page.loaded if "://" in target], f"{name} loads files from other servers"
        for target in page.targets if name != "404.html" else []:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            links += 1
            path = (root / name).parent / unquote(parts.path) if parts.path else root / name
            there = path.resolve().relative_to(root.resolve()).as_posix()
            there = "index.html" if there == "." else there
            anchors = found[there].anchors if there in found else set()
            if not (root / there).is_file() or (parts.fragment and unquote(parts.fragment) not in anchors):
                broken.append(f"{name}: {target}")
    assert not broken
    print(f"\n{count} pages, {links} links within the site, none broken")


@pytest.mark.slow
@pytest.mark.parametrize("line", ["[gone](gone.md)", "[gone](log.md#gone)"])
def test_a_broken_link_stops_the_build(line: str, tmp_path: Path):
    docs = tmp_path / "build" / "docs"
    docs.mkdir(parents=True)
    (docs / "index.md").write_text(f"# Page\n\n{line}\n")
    (docs / "log.md").write_text("# Log\n")
    assert zensical(tmp_path).returncode != 0
