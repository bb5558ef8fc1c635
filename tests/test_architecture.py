"""The house rules of the package, read from its source: layers, sizes, and what may not be used.

Each rule is a function from a source tree to the list of its violations; it must find none in minigpt, and must
find the one that is planted in a tree made for it.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. An import may only point to a lower row; those in one row are peers. "" is minigpt/__init__.py,
# the public API, which may look at everything below the command.
LAYERS = (
    ("errors", "bars"),
    ("config", "download", "shards"),
    ("checkpoint", "runtime", "losses", "huggingface", "packing"),
    ("jsonl", "pretrained", "kernels", "sampling", "parallel"),
    ("tokenizers", "data", "model"),
    ("graphs",),
    ("training", "generation", "decoding", "accounting", "tuning", "precision"),
    ("search", "recovery", "fitting", "tracking", "budget"),
    ("writing",),
    ("evals", "finetune", "quantize", "export", "viz", "serve", "bench", "doctor", "chat", "runs"),
    ("assemble",),
    ("",),
    ("cli",),
    ("__main__",),
)
RANK = {name: rank for rank, row in enumerate(LAYERS) for name in row}
CORE = ("model", "losses", "checkpoint", "training", "generation")
MAX_CORE, MAX_FILE, MAX_FUNCTION = 1500, 400, 60


def sources(root: Path, *folders: str) -> Iterator[tuple[Path, str]]:
    """Every Python file below the folders of a tree, with its text."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def part_of(module: str) -> str:
    """part_of("minigpt.model.gpt") -> "model"; part_of("minigpt") -> ""."""
    return [*module.split("."), ""][1]


def imports(path: Path, text: str, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of minigpt that a file imports, in functions and under `if` too."""
    package = list(path.relative_to(root).parts[:-1])  # minigpt/model/gpt.py -> ["minigpt", "model"]
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from minigpt import model` imports the part, `from minigpt import GPT` the public API;
            # `__version__` stands in minigpt/__init__.py, which every import runs anyway
            whole = module == "minigpt"
            wanted = [alias.name for alias in node.names if not (whole and alias.name == "__version__")]
            names = [f"{module}.{name}" if whole and name in RANK else module for name in wanted]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("import_module", "__import__"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name.split(".")[0] == "minigpt":
                yield getattr(node, "lineno", 0), name


def bad_imports(root: Path) -> list[str]:
    """Imports that point upward or sideways, and parts that no layer names."""
    found = []
    for path, text in sources(root, "minigpt"):
        parts = path.relative_to(root / "minigpt").with_suffix("").parts
        here = "" if parts == ("__init__",) else parts[0]
        if here not in RANK:
            found.append(f"{path}: {here!r} is in no layer; add it to LAYERS and to the design")
            continue
        for line, name in imports(path, text, root):
            there = part_of(name)
            if there != here and (there not in RANK or RANK[there] >= RANK[here]):
                found.append(f"{path}:{line}: {here or 'minigpt'} imports {name}, which is not below it")
    return found


def long_files(root: Path) -> list[str]:
    """Files over the limit."""
    counts = [(path, len(text.splitlines())) for path, text in sources(root, "minigpt", "tests", "benchmarks")]
    return [f"{path}: {lines} lines, {MAX_FILE} at most" for path, lines in counts if lines > MAX_FILE]


def long_functions(root: Path) -> list[str]:
    """Functions over the limit that do not say why ("# long because ..." between the def and its first statement)."""
    found = []
    for path, text in sources(root, "minigpt"):
        lines = text.splitlines()
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            opening = "\n".join(lines[node.lineno - 1 : node.body[0].lineno])
            if length > MAX_FUNCTION and not re.search(r"#.*\blong because \w", opening):
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines; split it or say '# long because'")
    return found


def unsafe_loading(root: Path) -> list[str]:
    """Pickle in any of its forms: a file that can run code has no place here."""
    modules = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = []
    for path, text in sources(root, "minigpt"):
        for node in ast.walk(ast.parse(text)):
            used: list[str] = []
            if isinstance(node, ast.Import):
                used = [alias.name for alias in node.names if alias.name.split(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom) and node.module:
                used = [node.module] if node.module.split(".")[0] in modules else []
                used += [f"torch.{a.name}" for a in node.names if node.module == "torch" and a.name in ("load", "save")]
            elif isinstance(node, ast.Attribute):
                used = [name for name in ("torch.load", "torch.save") if ast.unparse(node) == name]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                used = [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
            found += [f"{path}:{getattr(node, 'lineno', 0)}: {name}" for name in used]
    return found


def swallowed_errors(root: Path) -> list[str]:
    """`except` clauses that catch everything, or that do nothing at all with what they caught."""
    found = []
    for path, text in sources(root, "minigpt"):
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.ExceptHandler):
                continue
            idle = all(
                isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
                for item in node.body
            )
            if node.type is None or idle:
                found.append(f"{path}:{node.lineno}: {'catches everything' if node.type is None else 'does nothing'}")
    return found


def core_lines(root: Path) -> dict[str, int]:
    """Lines of each part of the core, comments and docstrings included."""
    counts = dict.fromkeys(CORE, 0)
    for path, text in sources(root, "minigpt"):
        part = path.relative_to(root / "minigpt").with_suffix("").parts[0]
        if part in counts:
            counts[part] += len(text.splitlines())
    return counts


def large_core(root: Path) -> list[str]:
    """The core, when it is more than a person reads in one sitting."""
    total = sum(core_lines(root).values())
    return [] if total < MAX_CORE else [f"the core has {total} lines; it must stay under {MAX_CORE}"]


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (bad_imports, long_files, long_functions, unsafe_loading, swallowed_errors, large_core)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_minigpt_keeps_the_rule(rule: Rule):
    assert rule(ROOT) == []


PLANTED = [
    (bad_imports, "model/gpt.py", "from minigpt.training import step"),  # upward
    (bad_imports, "model/gpt.py", "from minigpt.tokenizers import char"),  # sideways
    (bad_imports, "model/gpt.py", "def late():\n    import minigpt.training"),  # lazy
    (bad_imports, "model/gpt.py", "from minigpt import training"),
    (bad_imports, "model/gpt.py", "from minigpt import GPT"),  # the public API is above
    (bad_imports, "model/gpt.py", "from ..training import step"),
    (bad_imports, "model/gpt.py", "from .. import training"),
    (bad_imports, "model/gpt.py", "import importlib\nimportlib.import_module('minigpt.training')"),
    (bad_imports, "evals/loss.py", "from minigpt.explanation import plots"),
    (bad_imports, "assemble/run.py", "from minigpt.cli import console"),
    (bad_imports, "__init__.py", "from minigpt.cli import main"),
    (bad_imports, "losses.py", "from minigpt.runtime.device import seed"),
    (bad_imports, "helpers/tools.py", "x = 1"),  # a part that the design does not know
    (long_files, "model/gpt.py", "x = 1\n" * (MAX_FILE + 1)),
    (long_functions, "model/gpt.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION),
    (unsafe_loading, "model/gpt.py", "import pickle"),
    (unsafe_loading, "model/gpt.py", "import torch\ntorch.load('x')"),
    (unsafe_loading, "model/gpt.py", "from torch import load"),
    (unsafe_loading, "model/gpt.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept ValueError:\n    pass"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept:\n    x = 2"),
    (large_core, "training/loop.py", "x = 1\n" * MAX_CORE),
]


@pytest.mark.parametrize(("rule", "name", "text"), PLANTED)
def test_each_rule_finds_what_breaks_it(rule: Rule, name: str, text: str, tmp_path: Path):
    path = tmp_path / "minigpt" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    found = rule(tmp_path)
    assert len(found) == 1, found


ALLOWED = [
    (
        bad_imports,
        "cli/train.py",
        "def main():\n    from minigpt.assemble import run\n    from minigpt.cli import console",
    ),
    (bad_imports, "training/loop.py", "from minigpt.training.step import step\nfrom .optim import make\nimport torch"),
    (bad_imports, "model/gpt.py", "from minigpt.config import ModelConfig\nfrom ..errors import UserError"),
    (bad_imports, "model/gpt.py", "from minigpt import __version__"),
    (bad_imports, "__init__.py", "def __getattr__(name):\n    from minigpt.runs.train import train"),
    (long_functions, "model/gpt.py", "def f():  # long because it is a table\n" + "    x = 1\n" * MAX_FUNCTION),
    (unsafe_loading, "model/gpt.py", "import numpy\nnumpy.load('x', allow_pickle=False)"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept ValueError:\n    x = 2"),
]


@pytest.mark.parametrize(("rule", "name", "text"), ALLOWED)
def test_no_rule_finds_what_keeps_it(rule: Rule, name: str, text: str, tmp_path: Path):
    path = tmp_path / "minigpt" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8")
    assert rule(tmp_path) == []


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["--version"]], ids=" ".join)
def test_help_comes_without_importing_torch(argv: list[str]):
    code = (
        "import sys\n"
        "from minigpt.cli import main\n"
        "try:\n"
        f"    code = main({argv})\n"
        "except SystemExit as stop:\n"
        "    code = stop.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'tiktoken', 'transformers'} & set(sys.modules)\n"
        "print('heavy:', *sorted(heavy))\n"
        "sys.exit(code or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "heavy:"
    assert len(done.stdout) > len("heavy:\n")


def test_every_part_of_the_core_is_counted_and_the_counts_are_printed(capsys: pytest.CaptureFixture[str]):
    code = core_lines(ROOT)
    files = {path.relative_to(ROOT): len(text.splitlines()) for path, text in sources(ROOT, "minigpt")}
    largest = max(files, key=lambda path: files[path])
    with capsys.disabled():
        print(
            f"\ncore: {sum(code.values())} lines ({', '.join(f'{k} {v}' for k, v in code.items())}); "
            f"minigpt: {sum(files.values())} lines; largest file: {largest}, {files[largest]}"
        )
    assert all(code.values()), f"a part of the core was not found: {code}"
