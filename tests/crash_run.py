"""Train one tiny run that is killed or fails at a file operation, in a forked process, so torch is imported only once.

Python's audit hook counts the operations in the folder: each open for writing, rename, mkdir, remove, rmdir and
truncate. safetensors writes its files without the hook; the operations just before and after them are counted.
"""

import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

FLAGS = (
    "stories --data.stories-count 30 --model.embed-dim 8 --model.num-heads 2 --model.num-layers 1 "
    "--model.max-seq-len 8 --model.dropout 0.1 --model.attention sdpa --train.batch-size 4 --train.ema-decay 0.9 "
    "--train.max-steps 6 --train.eval-every 3 --train.eval-batches 1 --train.save-every 2 --train.keep-checkpoints 1 "
    "--train.sample-every 3 --schedule.warmup-steps 2 --train.device cpu --train.precision fp32 --train.compile off "
    "--generation.max-new-tokens 3 --logging.plots false --logging.csv true --logging.log-every 4 --name run"
).split()
EVENTS = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def operations(folder: Path, act: Callable[[int, str], None]) -> None:
    """Call act(number, name) just before each file operation of this process below a folder."""
    number = 0

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal number
        if event != "open" and event not in EVENTS:
            return
        if event == "open" and not (isinstance(values[2], int) and values[2] & WRITES):
            return
        path = os.fsdecode(values[0]) if isinstance(values[0], str | bytes | os.PathLike) else ""
        if path.startswith(str(folder)) or not Path(path).is_absolute():  # rmtree gives names without a folder
            number += 1
            act(number - 1, f"{event} {path.removeprefix(str(folder))}")

    sys.addaudithook(hook)


def in_child(folder: Path, act: Callable[[int, str], None] | None) -> tuple[int, str]:
    """Train in a new process: (exit code, or minus the signal that ended it; its output)."""
    log = folder.with_suffix(".log")
    child = os.fork()
    if child == 0:
        code = 70
        try:
            os.environ["MINIGPT_CACHE"] = str(folder / "cache")
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            os.dup2(2, 1)
            from minigpt.cli import main

            if act:
                operations(folder, act)
            code = main(["train", *FLAGS, "--logging.runs-dir", str(folder / "runs")])
        except BaseException:  # noqa: BLE001  a test reads what went wrong
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, log.read_text(errors="replace")


def outcome(folder: Path) -> dict[str, Any]:
    """All files, and what must be the same: the bytes of the last tensors, the lines of the metrics without times."""
    step = folder / "runs/run/checkpoints" / (folder / "runs/run/checkpoints/last").read_text().strip()
    timings = ("seconds", "tokens_per_second", "mfu")
    lines = [json.loads(line) for line in (folder / "runs/run/metrics.jsonl").read_text().splitlines()]
    return {
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*")),
        "tensors": {path.name: path.read_bytes().hex() for path in sorted(step.glob("*.safetensors"))},
        "lines": [{key: value for key, value in line.items() if key not in timings} for line in lines],
        "samples": (folder / "runs/run/samples.jsonl").read_text(),
    }


def kill_at(number: int) -> Callable[[int, str], None]:
    """SIGKILL just before that operation."""
    return lambda now, _: os.kill(os.getpid(), signal.SIGKILL) if now == number else None


def refuse_from(number: int, code: int) -> Callable[[int, str], None]:
    """From that operation on, all fail: the disk is full (deleting still works), or it became read-only."""

    def act(now: int, name: str) -> None:
        deletes = name.startswith(("os.remove", "os.rmdir"))
        if now >= number and not (deletes and code == errno.ENOSPC):
            raise OSError(code, os.strerror(code))

    return act


def trial(folder: Path, act: Callable[[int, str], None], expected: dict[str, Any], ended: Callable[[int], bool]) -> str:
    """An error message, or "": the run is disturbed; then the same command must end like the undisturbed run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    status, said = in_child(folder, act)
    if not ended(status) or "Traceback" in said or (status > 0 and said.count("minigpt: ") != 1):
        return f"disturbed, it ended with {status}: {said[-1500:]}"
    status, said = in_child(folder, None)
    if status != 0:
        return f"it does not go on ({status}): {said[-1500:]}"
    found = outcome(folder)
    wrong = [key for key in expected if found[key] != expected[key]]
    more = sorted(set(found["files"]) ^ set(expected["files"]))
    return f"other {', '.join(wrong)}; files {more}" if wrong else ""


def main(folder: Path, kind: str) -> None:
    """Print a JSON object: the operations, and the errors by the number of the operation."""
    import torch

    from minigpt.cli import main as command
    from minigpt.training.hooks import metrics

    metrics.peak_flops = lambda device, precision: 1e12  # measuring takes longer than a run
    torch.set_num_threads(1)
    os.environ["MINIGPT_CACHE"] = str(folder / "warm/cache")
    with redirect_stdout(sys.stderr):  # a first run here, so that each forked process has everything imported
        command(["train", *FLAGS, "--logging.runs-dir", str(folder / "warm")])
    names: list[str] = []
    listed, whole = folder / "names.txt", folder / "whole"
    whole.mkdir(parents=True)
    with listed.open("w", buffering=1) as file:
        status, said = in_child(whole, lambda _, name: print(name, file=file))
    assert status == 0, said
    names, expected = listed.read_text().splitlines(), outcome(whole)
    wrong = {}
    for number in range(len(names)):
        if kind == "kill":
            problem = trial(folder / "cut", kill_at(number), expected, lambda status: status == -signal.SIGKILL)
        else:
            act = refuse_from(number, getattr(errno, kind))
            problem = trial(folder / "cut", act, expected, lambda status: status in (0, 2))
        if problem:
            wrong[f"{number} {names[number]}"] = problem
    print(json.dumps({"operations": names, "wrong": wrong}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
