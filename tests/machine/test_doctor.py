"""Test the doctor: it runs once for real, and each thing that can be wrong gives its line of advice."""

import builtins
import json
import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from minigpt.cli.doctor import main
from minigpt.machine.doctor import Check, all_probes, examine, kernels, machine


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    """The output of `minigpt doctor --json` here; torch.compile takes half of its time: the slow test has it."""
    code = (
        "import sys, minigpt.machine.doctor as doctor\n"
        "from minigpt.cli.doctor import main\n"
        "probes = [probe for probe in doctor.all_probes() if probe[0] != 'torch.compile']\n"
        "doctor.all_probes = lambda: probes\n"
        "sys.exit(main(['--json']))\n"
    )
    # One thread: with two, they wait minutes for each other on cores that other tests use.
    environment = {name: value for name, value in os.environ.items() if name != "MINIGPT_DATA"}
    environment["OMP_NUM_THREADS"] = "1"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_json_has_the_documented_keys(report: dict[str, Any]):
    assert set(report) == {"ok", "seconds", "checks"}
    for check in report["checks"]:
        assert set(check) == {"name", "ok", "detail", "advice", "seconds", "figures"}


@pytest.mark.slow
def test_this_machine_is_healthy_and_every_part_was_tried(report: dict[str, Any]):
    checks = {check["name"]: check for check in report["checks"]}
    needed = {"python", "torch", "system", "memory", "disk", "cache", "fp32 on cpu", "attention on cpu"}
    assert report["ok"] and all(checks[name]["ok"] for name in needed | {"learning on cpu"})
    assert {"minigpt", "data", "C++ compiler", "accelerator", "bf16 on cpu", "fp16 on cpu"} <= set(checks)


@pytest.mark.slow
def test_figures_are_measured(report: dict[str, Any]):
    checks = {check["name"]: check for check in report["checks"]}
    assert 1e8 < checks["fp32 on cpu"]["figures"]["flops_per_second"] < 1e15
    assert 0 < checks["bf16 on cpu"]["figures"]["relative_error"] < 1e-2  # rounded, so not exact
    assert checks["attention on cpu"]["figures"]["milliseconds"]["auto"] > 0
    learned = checks["learning on cpu"]["figures"]
    assert abs(learned["first_loss"] - 2.08) < 0.4  # ln 8, the loss of a random guess
    assert learned["last_loss"] < learned["first_loss"] - kernels.LEARNING_DROP


@pytest.mark.slow
def test_the_command_ends_well_and_compiles(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert "torch.compile" in printed
    assert "all that minigpt needs works here" in printed


def test_something_broken_gives_exit_code_1_and_its_advice(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    probes = [("good", lambda: Check("good", True, "fine")), ("bad", lambda: Check("bad", False, "gone", "fix it"))]
    monkeypatch.setattr("minigpt.machine.doctor.all_probes", lambda: iter(probes))
    assert main([]) == 1
    printed = capsys.readouterr().out
    assert "-> fix it" in printed
    assert "broken: bad" in printed
    assert main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_what_is_only_optional_does_not_fail(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        "minigpt.machine.doctor.all_probes", lambda: iter([("gpu", lambda: Check("gpu", None, "none"))])
    )
    assert main([]) == 0


def test_a_probe_that_breaks_is_reported_and_the_rest_goes_on():
    def broken() -> Check:
        raise ZeroDivisionError("in the probe")

    started: list[str] = []
    probes = [("odd", broken), ("good", lambda: Check("good", True, "fine"))]
    odd, good = examine(probes, started.append)
    assert (odd.name, odd.ok, odd.detail) == ("odd", False, "ZeroDivisionError: in the probe")
    assert "report" in odd.advice
    assert good.ok
    assert started == ["odd", "good"]


def test_without_a_compiler_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check = machine.cpp_compiler()
    assert check.ok is None
    assert "g++" in check.detail
    assert "apt install g++" in check.advice


def test_a_compiler_that_does_not_compile_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "g++"
    fake.write_text("#!/bin/sh\necho 'fatal error: vector: No such file' >&2\nexit 1\n", encoding="utf-8")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv("CXX", raising=False)
    check = machine.cpp_compiler()
    assert check.ok is None
    assert "vector: No such file" in check.detail
    assert "g++" in check.advice


@pytest.mark.slow
def test_torch_compile_without_a_compiler_gives_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    check = kernels.torch_compile()
    assert check.ok is None
    assert "compiler" in check.detail.lower()
    assert "train.compile off" in check.advice


def test_torch_compile_that_hangs_is_cut_off():
    check = kernels.torch_compile(limit=0.01)
    assert check.ok is None
    assert "not done" in check.detail


def test_a_mirror_that_is_nowhere_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path / "nowhere"))
    check = machine.data()
    assert check.ok is False
    assert "nowhere" in check.detail
    assert "unset" in check.advice


def test_the_contents_of_a_mirror_are_listed(mirror: Path):
    check = machine.data()
    assert check.ok
    assert check.figures["mirror_path"] == str(mirror)
    assert {"shakespeare", "wikitext-2", "gpt2 tokenizer"} <= set(check.figures["mirror"])
    assert set(check.figures["missing"]) <= {"wikitext-103", "tinystories", "text8", "enwik8"}, "large texts"


def test_without_a_mirror_the_downloads_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MINIGPT_DATA", raising=False)
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path))
    check = machine.data()
    assert check.ok is None
    assert {"shakespeare", "wikitext-2", "gpt2 tokenizer"} <= set(check.figures["missing"])


@pytest.mark.parametrize("path", ["tinyshakespeare/input.txt", "gpt2-bpe/vocab.bpe"])
def test_an_altered_file_is_reported(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_text("something else", encoding="utf-8")
    monkeypatch.setenv("MINIGPT_DATA", str(tmp_path))
    check = machine.data()
    assert check.ok is False
    assert path in check.detail
    assert "correct the mirror" in check.advice


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage(10**12, 10**12 - 5, 5))
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "not" / "yet"))
    assert (machine.disk().ok, machine.cache().ok) == (False, False)
    assert "--logging.runs-dir" in machine.disk().advice
    assert "MINIGPT_CACHE" in machine.cache().advice


def test_a_cache_that_cannot_be_written_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    monkeypatch.setenv("MINIGPT_CACHE", str(tmp_path / "file" / "cache"))
    check = machine.cache()
    assert check.ok is False
    assert "cannot be written" in check.detail
    assert "MINIGPT_CACHE" in check.advice


def test_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "host_memory", lambda: (8 * 10**9, 10**8))
    check = machine.memory()
    assert check.ok is False
    assert "micro_batch_size" in check.advice


def test_an_old_python_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.sys, "version_info", (3, 9, 1))
    check = machine.python()
    assert check.ok is False
    assert "3.11" in check.advice


def test_an_extra_that_is_missing_says_how_to_get_it():
    check = machine.extra("plot", ["no-such-distribution-of-ours", "numpy"])
    assert check.ok is None
    assert "no-such-distribution-of-ours" in check.detail
    assert "numpy" not in check.detail
    assert '".[plot]"' in check.advice
    assert machine.extra("some", ["numpy"]).ok


def test_a_torch_that_fails_to_import_is_reported_and_the_rest_is_tried(monkeypatch: pytest.MonkeyPatch):
    real = builtins.__import__

    def without_torch(name: str, *rest: Any, **named: Any) -> Any:
        if name == "torch":
            raise OSError("libtorch.so: cannot open shared object file")
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    check = kernels.torch_itself()
    assert check.ok is False
    assert "libtorch.so" in check.detail
    assert "pip install" in check.advice
    names = [name for name, _ in all_probes()]
    assert "memory" in names
    assert not [name for name in names if "cpu" in name]


def test_a_precision_that_computes_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(kernels.TOLERANCE, "bf16", 0.0)
    monkeypatch.setitem(kernels.TOLERANCE, "fp32", 0.0)
    optional, needed = kernels.matmul("cpu", "bf16"), kernels.matmul("cpu", "fp32")
    assert (optional.ok, needed.ok) == (None, False)
    assert "wrong by" in optional.detail
    assert "train.precision bf16" in optional.advice
    assert "nothing can train" in needed.advice


def test_a_device_that_cannot_compute_is_reported():
    check = kernels.matmul("meta", "fp32")  # torch's device without numbers
    assert check.ok is False
    assert check.advice


def test_a_model_that_does_not_learn_is_reported(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "LEARNING_STEPS", 0)
    check = kernels.learning("cpu")
    assert check.ok is False
    assert "train.precision fp32" in check.advice
