"""Test damage, locks, a full disk and clocks that jump on a run's files, all through the command."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cli_run import SMALL, fails, text
from safetensors.torch import load_file

from minigpt.cli import main
from minigpt.config import load_config
from minigpt.errors import CheckpointError, RunError, StorageError
from minigpt.files import append_line, keep_lines, read_lines
from minigpt.runs import lock
from minigpt.runs.lock import delete_run, holder, is_held, run_lock
from minigpt.runs.plan import plan_run
from minigpt.runs.train import train
from minigpt.weights import checkpoint
from minigpt.weights.damage import newest_whole

fcntl = pytest.importorskip("fcntl", reason="needs POSIX")
STEPS = ["--train.max-steps", "12", "--train.save-every", "4", "--train.eval-every", "4", "--train.sample-every", "6"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 12 steps, saved at 8 and 12."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "cats.txt").write_text(text())
    assert main(["train", str(folder / "cats.txt"), *SMALL, *STEPS, "--logging.runs-dir", str(folder)]) == 0
    return folder / "cats"


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(finished, tmp_path / "cats"))


def again(run: Path, *more: str) -> int:
    return main(["train", str(run / "config.yaml"), "--logging.runs-dir", str(run.parent), "--name", run.name, *more])


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps, before = run / "checkpoints", (run / "checkpoints/step-00000012/model.safetensors").read_bytes()
    spoil(steps / "step-00000012/optimizer.safetensors")
    said = fails(capsys, ["eval", str(run)], "optimizer.safetensors: damaged")
    assert said.endswith(f": {steps / 'step-00000008'}"), "a path to paste"
    assert again(run) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "damaged (its sha256 differs from the manifest); renamed to damaged-step-00000012" in said
    assert "continuing from step-00000008: 4 steps will be trained again" in said
    assert (steps / "step-00000012/model.safetensors").read_bytes() == before, "bit for bit as it was"
    assert (steps / "damaged-step-00000012").is_dir()
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [0, 4, 8, 10, 12]
    spoil(steps / "step-00000012/state.json")
    assert again(run) == 0 and (steps / "damaged-step-00000012-1").is_dir()


def test_no_line_is_lost_after_a_kill_between_a_checkpoint_and_the_file_that_names_it(run: Path) -> None:
    steps = run / "checkpoints"
    checkpoint.point(steps, "last", steps / "step-00000008")
    config = load_config(run / "config.yaml").changed(logging={"runs_dir": str(run.parent)})
    with plan_run(config, run.name, "", True, print) as plan:  # killed before its first step
        assert plan.saved
        keep_lines(run / "metrics.jsonl", plan.saved.train.step)
    spoil(steps / "step-00000008/model.safetensors")
    assert again(run) == 0
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [0, 4, 8, 10, 12]


def test_without_a_whole_checkpoint_the_run_starts_over(run: Path) -> None:
    said: list[str] = []
    steps = run / "checkpoints"
    before = load_file(steps / "step-00000012/model.safetensors")
    (steps / "step-00000012/manifest.json").write_text('{"format": 1, "fil')
    spoil(steps / "step-00000008/model.safetensors")
    whole = newest_whole(steps, said.append)
    assert whole is None and "from the beginning: 12 steps will be trained again" in said[-1]
    assert again(run) == 0
    assert all(torch.equal(t, before[name]) for name, t in load_file(steps / "step-00000012/model.safetensors").items())
    manifest = steps / "step-00000012/manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format": 2}))
    with pytest.raises(CheckpointError, match="format 2 is not 1"):
        newest_whole(steps, said.append)
    assert manifest.exists(), "a newer minigpt's checkpoint is left where it is"


@pytest.mark.parametrize("torn", [b"", b"step-0000", b"\xff\xfe\x00step"])
def test_torn_pointers_and_lines_and_what_kills_left_are_passed_over(run: Path, torn: bytes) -> None:
    for name in ("last", "best"):
        (run / "checkpoints" / name).write_bytes(torn)
    (run / "checkpoints/.step-00000016-77").mkdir()
    (run / "checkpoints/.last-77").write_text("step")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 13, "lo')
    assert again(run, "--resume", "--train.max-steps", "14") == 0
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 4, 8, 10, 12, 14]
    assert (run / "checkpoints/last").read_text() == "step-00000014\n"
    assert not list((run / "checkpoints").glob(".*"))
    assert main(["generate", str(run), "--prompt", "the", "--max-new-tokens", "2"]) == 0


@pytest.mark.parametrize("name", ["config.yaml", "receipt.json", "tokenizer.json", "metrics.jsonl"])
def test_a_changed_file_of_the_run_is_one_clear_error(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (run / name).read_bytes()
    config = str(shutil.copy(run / "config.yaml", run.parent / "recipe.yaml"))
    (run / name).write_bytes(b'{"x": \x00' + whole[len(whole) // 2 :])
    argv = ["train", config, "--logging.runs-dir", str(run.parent), "--name", run.name]
    assert name in fails(capsys, [*argv, "--resume", "--train.max-steps", "14"], str(run))
    (run / name).write_bytes(whole)
    assert main([*argv, "--resume", "--train.max-steps", "14"]) == 0


def test_two_processes_never_train_one_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import fcntl, json, os, sys, time\n"
        "file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX)\n"
        "json.dump({'pid': os.getpid(), 'host': 'here'}, file); file.flush(); print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    argv = [sys.executable, "-c", code, str(run / ".lock")]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout and other.stdout.readline() == "held\n"
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        argv = ["train", str(run / "config.yaml"), "--logging.runs-dir", str(run.parent), "--name", run.name]
        fails(capsys, argv, f"{run} is being trained by process {other.pid} on here", "--name")
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        other.send_signal(signal.SIGKILL)
    assert again(run) == 0, "the system released the lock of the killed process"
    with run_lock(run), pytest.raises(RunError, match=f"process {os.getpid()} on "), run_lock(run):
        pass
    with run_lock(run), pytest.raises(RunError, match=r"wait for it or end it$"):  # --name would not help
        delete_run(run)
    with (run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_who_only_asks_about_a_lock_keeps_no_run_from_starting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".lock").touch()
    asked = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(asked, fcntl.LOCK_SH)
    monkeypatch.setattr(lock, "time", SimpleNamespace(sleep=lambda _: os.close(asked)))  # between the first two tries
    with run_lock(tmp_path):
        assert is_held(tmp_path / ".lock")


def test_a_file_system_without_locks_is_said_and_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(_handle: object, _how: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.warns(UserWarning, match="no locks"), run_lock(tmp_path / "my"):
        assert not is_held(tmp_path / "my/.lock")


@pytest.fixture
def on_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows' lock, played by flock: no two handles lock a file, and a folder with an open file is not renamed."""

    def locking(handle: int, mode: str, count: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def rename(path: Path, target: Path) -> None:
        opened = {file.resolve() for file in Path("/proc/self/fd").iterdir()}
        if any(path.resolve() in file.parents for file in opened):
            raise PermissionError(errno.EACCES, "Access is denied")
        os.replace(path, target)  # noqa: PTH105  Path.replace is this function

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs Linux: open files are read from /proc")
    monkeypatch.setitem(sys.modules, "msvcrt", SimpleNamespace(LK_NBLCK=2, locking=locking))
    monkeypatch.setattr(Path, "replace", rename)
    monkeypatch.setattr(sys, "platform", "win32")


@pytest.mark.usefixtures("on_windows")
def test_a_run_is_held_and_deleted_on_windows_too(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        (run / "config.yaml").touch()
        assert is_held(run / ".lock") and holder(run / ".lock") == os.getpid()
        with pytest.raises(RunError, match="is being trained"):
            delete_run(run)
    assert not is_held(run / ".lock") and (run / "config.yaml").exists()
    delete_run(run)
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_begin_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "short.txt").write_text("too short")
    argv = ["train", str(tmp_path / "short.txt"), *SMALL, "--train.max-steps", "2"]
    argv += ["--logging.runs-dir", str(tmp_path / "runs")]
    fails(capsys, argv, "one window needs")
    assert not (tmp_path / "runs/short").exists()
    (tmp_path / "file").write_text("a file where the directory should be")
    fails(capsys, [*argv[:-1], str(tmp_path / "file")], "cannot be written", "--logging.runs-dir")


def test_a_full_disk_leaves_every_needed_line_whole(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(StorageError, match="the disk is full"):
        append_line(Path("/dev/full"), {"step": 1})
    path = tmp_path / "metrics.jsonl"
    for step in (1, 2):
        append_line(path, {"step": step})
    path.write_bytes(path.read_bytes() + b'{"step": 3, "lo')  # a line that was cut when the disk was full
    keep_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_line_that_does_not_fit_leaves_no_part(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX")
    path, before = tmp_path / "incidents.jsonl", resource.getrlimit(resource.RLIMIT_FSIZE)
    append_line(path, {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(StorageError):
            append_line(path, {"step": 2, "what": "loss nan"})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    append_line(path, {"step": 3})
    assert [line["step"] for line in read_lines(path)] == [1, 3]


def test_a_clock_that_jumps_changes_nothing(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: (-1) ** next(jumps) * 1e9)
    config = load_config(finished / "config.yaml", {"logging.runs_dir": str(tmp_path)})
    state = train(config, name="jumping", quiet=True).state
    ours, theirs = (load_file(path / "checkpoints/step-00000012/model.safetensors") for path in
                    (tmp_path / "jumping", finished))  # fmt: skip
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    seconds = [line["seconds"] for line in read_lines(tmp_path / "jumping/metrics.jsonl")]
    assert seconds == sorted(seconds) and 0 < state.seconds < 600


@pytest.mark.parametrize("name", ["step-00000012-copy", "step-12 (2)", "step-00000012.txt"])
def test_a_copy_of_a_checkpoint_does_not_end_the_run(run: Path, name: str) -> None:
    steps = run / "checkpoints"
    if name.endswith("txt"):
        (steps / name).write_text("a note")
    else:
        shutil.copytree(steps / "step-00000012", steps / name)
    assert again(run, "--resume", "--train.max-steps", "20") == 0
    assert (steps / name).exists()
    assert main(["generate", str(steps / name), "--prompt", "the", "--max-new-tokens", "2"]) == (
        2 if name.endswith("txt") else 0
    )
