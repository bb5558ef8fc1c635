"""Test the house rules of the package on its source: which imports are allowed, sizes, and what may not be used.

Each rule is a function from a source tree to the list of its violations. It must find none in minigpt, and must find
the violation that is planted in a tree made for it. `pytest -s` on this file prints the tree and its figures.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# The rooms, lowest first. An import may only point to a lower row; those in one row never import each other.
# "" is minigpt/__init__.py, the public API, which may look at everything below the command.
ROOMS = """
    errors
    files
    layout download console torchrun
    compiled measured mkl
    before_torch
    config
    tokenizers
    data
    weights
    model
    runtime
    training generation
    evals explanation
    machine
    runs
    export serve
    ""
    cli
    __main__
"""
# The same rule inside the large rooms. A room's __init__.py is above all its files.
INSIDE = {
    "config": "rates section yaml_text / finetune generation parallel presets recovery / tree / load / unused",
    "tokenizers": "cutter joining patterns / base / learn simple utf8_stream words / bpe sentencepiece / gpt2"
    " / load / chat_template gguf",
    "data": "batches clean named_datasets statistics stories text_files token_file / json_rows / huggingface / sources"
    " / corpus / encode inspect / prepare",
    "data.stories": "grammar / generator / questions",
    "data.inspect": "overlap / report",
    "weights": "aside checkpoint_state generation_settings gguf_file huggingface_config quantized sharded torch_file"
    " / checkpoint huggingface / damage gguf llama2c nanogpt pretrained",
    "model": "activations cache heads learner loss / inputs shared_row / kernels / reference / norms / parts / gpt"
    " / cost ensemble",
    "model.kernels": "attention dropout fused / chunked_loss",
    "runtime": "memory ranks / device parallel / autotune memory_estimate placement precision",
    "runtime.parallel": "wrap / group",
    "training": "adamw / muon objective schedule / optim step / loop / finetune hooks memory",
    "training.hooks": "average checkpoints early_stopping epochs metrics plateau samples screen sharing signals"
    " trackers / guard sharded_checkpoints tracking",
    "training.finetune": "distill freeze lora records row_batches / adapters preference",
    "generation": "sampling / engine / fast search / text / chat",
    "generation.sampling": "processors / order",
    "generation.search": "beam contrastive speculative",
    "generation.text": "bias_and_bans prompts stops / generate",
    "generation.chat": "conversation terminal / session / saved / commands",
    "generation.fast": "cuda_graphs rows / prepare",
    "evals": "ngram perplexity token_text / adapt floors temperature / report / records harness_model / harness",
    "explanation": "canvas html intervene metrics surprise trace / heads recording run_plots"
    " / analysis data_plots over_time scaling / dataset figures tables walk",
    "machine": "bench doctor",
    "machine.bench": "rivals shape timing / data machine profile tokenizer / generate train",
    "machine.doctor": "check / kernels machine",
    "runs": "data lock quantize receipt settings task tiny_run / consolidate feeds load plan record"
    " / resolve / chat_format importing score / compare repeat train / budget finetune / sweep",
    "runs.budget": "amount law / rule / overhead speed / plan / within",
    "export": "card onnx_graph / huggingface / gguf page peft / onnx_directory",
    "export.page": "pattern / pack / check",
    "serve": "limits / engine / models / api / workbench / server",
    "serve.api": "html schemas / errors scores / guard prompts state / answer / chat completions embeddings small"
    " / app",
    "serve.workbench": "form inside notes process run_list static / details starting / routes",
    "serve.engine": "batch / job prefixes / choose / writer / loop",
    "cli": "fields / help finished tables / answers arguments extra_scores tasks / bench config data demo doctor eval"
    " explain export finetune import model plot prepare prompts quantize runs serve tokenizer train / generate sweep"
    " / chat",
}
CORE = (
    "model/gpt.py model/parts.py model/reference.py model/cache.py model/loss.py model/learner.py "
    "weights/checkpoint.py training/loop.py training/step.py training/schedule.py training/optim.py training/muon.py "
    "training/objective.py generation/engine.py"
).split()
"""The files that a reader must understand; they can be read in one sitting."""
MAX_FILE, MAX_FUNCTION = 500, 60


def rank_of(rows: Iterable[str]) -> dict[str, int]:
    """rank_of(["errors", "files console"]) -> {"errors": 0, "files": 1, "console": 1}; \'""\' is the empty name."""
    return {name.strip('"'): rank for rank, row in enumerate(rows) for name in row.split()}


RANK = rank_of(ROOMS.strip().splitlines())
INNER = {room: rank_of(rows.split("/")) for room, rows in INSIDE.items()}


def sources(root: Path, *folders: str) -> Iterator[tuple[Path, str]]:
    """Every Python file below the folders of a tree, with its text."""
    for folder in folders:
        for path in sorted((root / folder).rglob("*.py")):
            yield path, path.read_text(encoding="utf-8")


def dotted(path: Path, root: Path) -> str:
    """minigpt/model/gpt.py -> "model.gpt"; minigpt/model/__init__.py -> "model"; minigpt/__init__.py -> ""."""
    parts = path.relative_to(root / "minigpt").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def is_module(root: Path, package: str, name: str) -> bool:
    """Whether `from package import name` imports a module; rooms of the real tree also count in a planted tree."""
    places = [tree.joinpath(*package.split("."), name) for tree in (root, ROOT)]
    return any(place.is_dir() or place.with_suffix(".py").is_file() for place in places)


def called(function: ast.expr) -> str:
    """The last name of what is called: importlib.import_module(...) -> "import_module"."""
    return getattr(function, "attr", getattr(function, "id", ""))


@cache
def nodes(text: str) -> list[ast.AST]:
    """All parts of a file; parsed once for all rules."""
    return list(ast.walk(ast.parse(text)))


def imports(path: Path, text: str, root: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything of minigpt that a file imports, in functions and under `if` too."""
    package = list(path.relative_to(root).parts[:-1])  # minigpt/model/gpt.py -> ["minigpt", "model"]
    for node in nodes(text):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from minigpt import model` imports the part, `from minigpt import GPT` the public API; `__version__` is
            # in minigpt/__init__.py, which every import runs anyway
            whole = module == "minigpt"
            wanted = [alias.name for alias in node.names if not (whole and alias.name == "__version__")]
            names = [f"{module}.{name}" if is_module(root, module, name) else module for name in wanted]
        elif isinstance(node, ast.Call) and called(node.func) in ("import_module", "__import__"):
            names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        for name in names:
            if name.split(".")[0] == "minigpt":
                yield getattr(node, "lineno", 0), name


def above(here: str, there: str) -> str | None:
    """Why `here` may not import `there`, both dotted names below minigpt; None if it may.

    The table of the innermost room that contains both decides.
    """
    ours, theirs = here.split("."), there.split(".")
    depth = next((i for i, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), None)
    if depth is None:  # a room's __init__ imports from its own room; no module imports the room that it is in
        return None if len(ours) <= len(theirs) else f"imports its own room {there}; name the module"
    room = ".".join(ours[:depth])
    table = INNER.get(room, {}) if room else RANK
    for name in (ours[depth], theirs[depth]):
        if name not in table:
            return f"{name!r} is in no row of {room or 'minigpt'}; add it to the table and to CODEMAP.md"
    return None if table[theirs[depth]] < table[ours[depth]] else f"imports {there}, which is not below it"


def bad_imports(root: Path) -> list[str]:
    """Imports that point upward or sideways, and modules that no row names."""
    found = []
    for path, text in sources(root, "minigpt"):
        here = dotted(path, root)
        if here.split(".")[0] not in RANK:
            found.append(f"{path}: {here!r} is in no row; add it to ROOMS and to CODEMAP.md")
            continue
        for line, name in imports(path, text, root):
            why = above(here, name.removeprefix("minigpt").lstrip("."))
            found += [f"{path}:{line}: {here or 'minigpt'} {why}"] if why else []
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
        for node in nodes(text):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            opening = "\n".join(lines[node.lineno - 1 : node.body[0].lineno])
            if length > MAX_FUNCTION and not re.search(r"#.*\blong because \w", opening):
                found.append(f"{path}:{node.lineno}: {node.name} has {length} lines; split it or say '# long because'")
    return found


def unsafe_loading(root: Path) -> list[str]:
    """Pickle in any form, because such a file can run code.

    Except torch.load(..., weights_only=True) in the one module that reads checkpoints of other programs.
    """
    modules = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
    found = []
    for path, text in sources(root, "minigpt"):
        safe = [
            call.func
            for call in nodes(text)
            if isinstance(call, ast.Call) and dotted(path, root) == "weights.torch_file"
            if any(key.arg == "weights_only" and ast.unparse(key.value) == "True" for key in call.keywords)
        ]
        for node in nodes(text):
            used: list[str] = []
            if isinstance(node, ast.Import):
                used = [alias.name for alias in node.names if alias.name.split(".")[0] in modules]
            elif isinstance(node, ast.ImportFrom) and node.module:
                used = [node.module] if node.module.split(".")[0] in modules else []
                used += [f"torch.{a.name}" for a in node.names if node.module == "torch" and a.name in ("load", "save")]
            elif isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                used = [name for name in ("torch.load", "torch.save") if ast.unparse(node) == name and node not in safe]
            elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                used = [] if isinstance(node.value, ast.Constant) and node.value.value is False else ["allow_pickle"]
            found += [f"{path}:{getattr(node, 'lineno', 0)}: {name}" for name in used]
    return found


def swallowed_errors(root: Path) -> list[str]:
    """`except` clauses that catch everything, or that do nothing at all with what they caught."""
    found = []
    for path, text in sources(root, "minigpt"):
        for node in nodes(text):
            if not isinstance(node, ast.ExceptHandler):
                continue
            idle = all(
                isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant))
                for item in node.body
            )
            if node.type is None or idle:
                found.append(f"{path}:{node.lineno}: {'catches everything' if node.type is None else 'does nothing'}")
    return found


def system_dependent(root: Path) -> list[str]:
    """Text in the system's own encoding, which on Windows is not UTF-8; and temporary folders whose deletion may fail,
    as it does on Windows if a file in them is still mapped.
    """
    found = []
    for path, text in sources(root, "minigpt"):
        for call in (node for node in nodes(text) if isinstance(node, ast.Call)):
            name, words = called(call.func), ast.unparse(call)
            method = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
            opens = name == "open" and not re.match(r"(os|gzip|archive)\.|.*'[rwax]+b'", words)
            pipes = any(key.arg == "text" and ast.unparse(key.value) == "True" for key in call.keywords)
            if (method or opens or pipes) and not re.search(r"encoding=|'utf-8'", words):
                found.append(f"{path}:{call.lineno}: {name} without an encoding")
            if name == "TemporaryDirectory" and "ignore_cleanup_errors=True" not in words:
                found.append(f"{path}:{call.lineno}: {name} without ignore_cleanup_errors=True")
    return found


def missing_core(root: Path) -> list[str]:
    """Files of the core that no longer exist."""
    return [f"{name}: named in CORE, but not there" for name in CORE if not (root / "minigpt" / name).is_file()]


def room_arrows(root: Path) -> set[tuple[str, str]]:
    """(room, room that it imports), for all rooms."""
    arrows = set()
    for path, text in sources(root, "minigpt"):
        here = dotted(path, root).split(".")[0]
        there = {name.removeprefix("minigpt").lstrip(".").split(".")[0] for _, name in imports(path, text, root)}
        arrows |= {(here, room) for room in there if room != here}
    return arrows


def circles(arrows: set[tuple[str, str]]) -> list[str]:
    """Rooms that can be reached from themselves."""
    reached = set(arrows)
    while more := {(a, d) for a, b in reached for c, d in arrows if b == c} - reached:
        reached |= more
    return sorted(a for a, b in reached if a == b)


Rule = Callable[[Path], list[str]]
RULES: tuple[Rule, ...] = (
    bad_imports, long_files, long_functions, unsafe_loading, swallowed_errors, system_dependent
)  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_minigpt_keeps_the_rule(rule: Rule):
    assert rule(ROOT) == []


PLANTED = [
    (bad_imports, "model/gpt.py", "from minigpt.training import step"),  # upward
    (bad_imports, "generation/engine.py", "from minigpt.training import loop"),  # sideways
    (bad_imports, "model/gpt.py", "def late():\n    import minigpt.training"),  # lazy
    (bad_imports, "model/gpt.py", "from minigpt import training"),
    (bad_imports, "model/gpt.py", "from minigpt import GPT"),  # the public API is above
    (bad_imports, "model/gpt.py", "from ..training import step"),
    (bad_imports, "model/gpt.py", "from .. import training"),
    (bad_imports, "model/gpt.py", "import importlib\nimportlib.import_module('minigpt.training')"),
    (bad_imports, "evals/loss.py", "from minigpt.explanation import plots"),
    (bad_imports, "runs/train.py", "from minigpt.cli import console"),
    (bad_imports, "__init__.py", "from minigpt.cli import main"),
    (bad_imports, "losses.py", "from minigpt.runtime.device import seed"),
    (bad_imports, "helpers/tools.py", "x = 1"),  # a part that the design does not know
    (long_files, "model/gpt.py", "x = 1\n" * (MAX_FILE + 1)),
    (long_functions, "model/gpt.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION),
    (unsafe_loading, "model/gpt.py", "import pickle"),
    (unsafe_loading, "model/gpt.py", "import torch\ntorch.load('x')"),
    (unsafe_loading, "model/gpt.py", "from torch import load"),
    (unsafe_loading, "model/gpt.py", "import torch\ntorch.load('x', weights_only=True)"),
    (unsafe_loading, "weights/torch_file.py", "import torch\ntorch.load('x')"),
    (unsafe_loading, "model/gpt.py", "import numpy\nnumpy.load('x', allow_pickle=True)"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept ValueError:\n    pass"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept:\n    x = 2"),
    (system_dependent, "files.py", "Path('x').open('a')"),
    (system_dependent, "files.py", "Path('x').write_text(text)"),
    (system_dependent, "files.py", "subprocess.run(['node'], text=True)"),
    (system_dependent, "files.py", "with TemporaryDirectory() as folder: pass"),
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
        "def main():\n    from minigpt.runs import train\n    from minigpt.cli import arguments",
    ),
    (bad_imports, "training/loop.py", "from minigpt.training.step import step\nfrom .optim import make\nimport torch"),
    (bad_imports, "model/gpt.py", "from minigpt.config import ModelConfig\nfrom ..errors import UserError"),
    (bad_imports, "model/gpt.py", "from minigpt import __version__"),
    (bad_imports, "__init__.py", "def __getattr__(name):\n    from minigpt.runs.train import train"),
    (long_functions, "model/gpt.py", "def f():  # long because it is a table\n" + "    x = 1\n" * MAX_FUNCTION),
    (unsafe_loading, "model/gpt.py", "import numpy\nnumpy.load('x', allow_pickle=False)"),
    (unsafe_loading, "weights/torch_file.py", "import torch\ntorch.load('x', weights_only=True)"),
    (swallowed_errors, "model/gpt.py", "try:\n    x = 1\nexcept ValueError:\n    x = 2"),
    (system_dependent, "files.py", "Path('x').open('rb')\nos.open('x', 0)\nread_text('x')\nx.read_text('utf-8')"),
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


def test_the_files_of_the_core_are_there():
    assert missing_core(ROOT) == []


def test_rooms_stand_in_no_circle_and_the_figures_are_printed():
    lines = {path.relative_to(ROOT / "minigpt"): len(text.splitlines()) for path, text in sources(ROOT, "minigpt")}
    arrows = room_arrows(ROOT)
    for folder in sorted({path.parts[0] for path in lines}):
        inside = sorted({path.parts[1] for path in lines if path.parts[0] == folder and len(path.parts) > 1})
        print(f"{folder:<14}{' '.join(name.removesuffix('.py') for name in inside if name != '__init__.py')}")
    core = sum(lines[Path(name)] for name in CORE)
    largest = max(lines, key=lambda path: lines[path])
    print(
        f"{len({a for arrow in arrows for a in arrow})} rooms, {len(arrows)} arrows between them, "
        f"{len(circles(arrows))} circles; {sum(lines.values()):,} lines, of which the core {core:,}; "
        f"the largest file: {largest}, {lines[largest]}"
    )
    assert circles(arrows) == []
    assert circles({("a", "b"), ("b", "c"), ("c", "a"), ("c", "d")}) == ["a", "b", "c"]
