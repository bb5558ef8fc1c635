"""Test the machine and the installation with probes that do not need torch."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from minigpt.console import counted
from minigpt.data.named_datasets import NAMED
from minigpt.download import cache_root
from minigpt.files import expand_home, file_sha256
from minigpt.machine.doctor.check import Check, output_of, reason
from minigpt.runtime.memory import host_memory

GB = 1e9
NEEDED_GB = 1.0  # GB of memory and of disk that a small run may need


def python() -> Check:
    """The Python interpreter."""
    ok = sys.version_info >= (3, 11)
    detail = f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}"
    advice = "" if ok else "minigpt needs Python 3.11 or newer; make .venv again with it"
    return Check("python", ok, detail, advice, {"version": platform.python_version()})


def minigpt() -> Check:
    """The installed package."""
    folder = Path(__file__).parents[2]
    try:
        version = importlib.metadata.version("minigpt")
    except importlib.metadata.PackageNotFoundError:
        return Check("minigpt", None, f"runs from {folder}, not installed", "to get the command: pip install -e .")
    return Check("minigpt", True, f"{version} from {folder}", figures={"version": version})


def system() -> Check:
    """The operating system, the processor, and its instruction sets that matter for speed."""
    wanted = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_fp16", "asimd", "bf16", "sve")
    name, flags = platform.processor() or platform.machine(), set[str]()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        text = info.read_text(encoding="utf-8", errors="replace")
        names = re.findall(r"^(?:model name|Model)\s*:\s*(.+)$", text, re.M)
        flags = set(" ".join(re.findall(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.M)).split())
        name = names[0] if names else name
    found = [flag for flag in wanted if flag in flags]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    detail = ", ".join(filter(None, (f"{platform.system()} {platform.release()}", name, counted(cores or 1, "core"))))
    figures = {"os": platform.platform(), "cpu": name, "cores": cores, "flags": found}
    return Check("system", True, detail + (f", {' '.join(found)}" if found else ""), figures=figures)


def memory() -> Check:
    """The memory that is free now, within the limit of a container."""
    total, available = host_memory()
    if not total:
        return Check("memory", None, "cannot be read on this system")
    ok = available / GB >= NEEDED_GB
    detail = f"{available / GB:.1f} GB free of {total / GB:.1f} GB"
    advice = "" if ok else "close other programs, or lower train.micro_batch_size"
    return Check("memory", ok, detail, advice, {"total_bytes": total, "available_bytes": available})


def disk() -> Check:
    """Free space and write permission in the working directory, where runs/ is made."""
    return _folder("disk", Path.cwd(), "free some space, or put runs elsewhere with --logging.runs-dir DIR")


def cache() -> Check:
    """Free space and write permission in the cache, for downloads and prepared texts."""
    return _folder("cache", cache_root(), "free some space, or name another place with MINIGPT_CACHE=DIR")


def _folder(name: str, folder: Path, fix: str) -> Check:
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=parent) as file:
            file.write(b"minigpt")
    except OSError as error:
        return Check(name, False, f"{folder} cannot be written ({error.strerror})", fix)
    free = shutil.disk_usage(parent).free
    ok = free / GB >= NEEDED_GB
    detail = f"{free / GB:.1f} GB free in {folder}"
    return Check(name, ok, detail, "" if ok else fix, {"path": str(folder), "free_bytes": free})


def data() -> Check:
    """Which published files are complete in the mirror (MINIGPT_DATA) and in the cache."""
    from minigpt.tokenizers import gpt2

    named, base = os.environ.get("MINIGPT_DATA"), cache_root()
    named = expand_home(named) if named else None
    if named and not Path(named).is_dir():
        return Check("data", False, f"MINIGPT_DATA={named} is not a directory", "correct MINIGPT_DATA, or unset it")
    files = {name: {part.file.path: part.file.sha256 for part in parts.values()} for name, parts in NAMED.items()}
    files["gpt2 tokenizer"] = {f"{gpt2.FOLDER}/{name}": (digest,) for name, digest in gpt2.SHA256.items()}
    held: dict[str, list[str]] = {"mirror": [], "cache": []}
    altered: list[str] = []
    for name, digests in files.items():
        cached = base if name == "gpt2 tokenizer" else base / "datasets"
        for place, folder in (("mirror", Path(named)), ("cache", cached)) if named else (("cache", cached),):
            here = [folder / path for path in digests if (folder / path).is_file()]
            wrong = [path for path in here if file_sha256(path) not in digests[str(path.relative_to(folder))]]
            altered += [str(path) for path in wrong]
            held[place] += [name] if len(here) == len(digests) and not wrong else []
    missing = [name for name in files if not any(name in names for names in held.values())]
    words = [f"mirror {named}: {', '.join(held['mirror']) or 'nothing'}"] if named else ["no mirror (MINIGPT_DATA)"]
    words += [f"cache: {', '.join(held['cache']) or 'nothing'}"]
    words += [f"downloaded at first use: {', '.join(missing)}"] if missing else []
    figures = {"mirror_path": named, **held, "missing": missing, "altered": altered}
    if altered:
        advice = "differs from the published file, so it will be refused: delete it, or correct the mirror"
        return Check("data", False, f"altered: {', '.join(altered)}", advice, figures)
    return Check("data", True if named else None, "; ".join(words), figures=figures)


def extras() -> dict[str, list[str]]:
    """{extra: its distributions}, as declared by the installed package; empty if minigpt is not installed."""
    found: dict[str, list[str]] = {}
    try:
        required = importlib.metadata.requires("minigpt") or []
    except importlib.metadata.PackageNotFoundError:
        return found
    for line in required:  # "matplotlib>=3.8; extra == 'plot'"
        match = re.match(r"([A-Za-z0-9_.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line)
        if match:
            found.setdefault(match[2], []).append(match[1])
    return found


def extra(name: str, distributions: list[str]) -> Check:
    """Whether the distributions of one optional extra are installed."""
    versions: dict[str, str | None] = {}
    for distribution in distributions:
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            versions[distribution] = None
    missing = [distribution for distribution, version in versions.items() if version is None]
    figures = {"versions": versions}
    if missing:
        advice = f'if you want it: pip install -e ".[{name}]"'
        return Check(f"extra {name}", None, f"not here: {', '.join(missing)}", advice, figures)
    return Check(f"extra {name}", True, ", ".join(f"{key} {value}" for key, value in versions.items()), figures=figures)


def cpp_compiler() -> Check:
    """A C++ compiler whose programs run. Only torch.compile on a CPU needs one."""
    name = "C++ compiler"
    install = "only torch.compile needs one: apt install g++, on a Mac xcode-select --install"
    words = [word for word in (os.environ.get("CXX"), "g++", "clang++", "c++") if word]
    path = next(filter(None, map(shutil.which, words)), None)
    if path is None:
        return Check(name, None, f"none of {', '.join(words)} is here", install)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        source, program = Path(folder) / "try.cpp", Path(folder) / "try"
        source.write_text("#include <vector>\nint main() { return std::vector<int>{0}[0]; }\n", encoding="ascii")
        try:
            made = output_of([path, str(source), "-o", str(program)], 60)
            ran = made.returncode == 0 and subprocess.run([str(program)], timeout=10).returncode == 0
            about = output_of([path, "--version"], 10).stdout
        except (OSError, subprocess.SubprocessError) as error:
            return Check(name, None, f"{path}: {reason(error)}", install)
    if not ran:
        said = (made.stderr.strip().splitlines() or ["its program does not run"])[0]
        return Check(name, None, f"{path} does not work: {said[:160]}", install)
    return Check(name, True, f"{(about.splitlines() or ['unknown version'])[0]} at {path}", figures={"path": path})
