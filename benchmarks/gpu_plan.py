"""Run the measurements that need a GPU within 13 minutes, the most important first, and write each result at once.

    python benchmarks/gpu_plan.py --out results
    python benchmarks/gpu_plan.py --out results --tiny --text my.txt    # the same steps on a CPU, in a minute or two

You can stop it at any moment. Started again with the same --out, it skips steps with a result and continues a training
from its last checkpoint. results.jsonl holds one object per step: name, command, seconds, device, commit, result.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
SPARE = 25.0
"""Seconds for starting, compiling and stopping a training, in addition to its own time."""


@dataclass(frozen=True)
class Training:
    """A run to train for some seconds, and then to score."""

    name: str
    recipe: str
    seconds: float
    flags: tuple[str, ...] = ()
    goal: str = ""


@dataclass(frozen=True)
class Command:
    """A command to run; its `--json` output is the result."""

    name: str
    words: tuple[str, ...]
    seconds: float
    flags: tuple[str, ...]


PLAN: tuple[Training | Command, ...] = (
    Training("record", "wikitext2-record", 420, (), "test, a word, windows that overlap: < 63.3, then < 60"),
    Training(
        "small-25m",
        "small-25m",
        95,
        (
            *("--data.source", "wikitext-2", "--model.shape", "modern", "--model.max-seq-len", "512"),
            *("--model.dropout", "0.3", "--optimizer.beta2", "0.99", "--optimizer.weight-decay", "0.2"),
            *("--train.batch-size", "32", "--train.max-epochs", "null", "--train.early-stopping", "null"),
        ),
        "validation, a token: < 28.7",
    ),
    Training(
        "wikitext2-22m",
        "wikitext2-22m",
        75,
        (
            *("--model.max-seq-len", "256", "--model.num-layers", "6", "--model.dropout", "0.2"),
            *("--model.word-dropout", "0.1", "--model.output-dropout", "0.1"),
            *("--train.batch-size", "32", "--train.max-steps", "null"),
        ),
        "validation, a token: < 35",
    ),
    Command(
        "124M",
        ("bench", "train", "gpt2-124m", "--steps", "5", "--warmup", "1", "--json"),
        60,
        (
            *("--model.dropout", "0", "--train.batch-size", "128", "--train.micro-batch-size", "64"),
            *("--train.precision", "bf16-pure"),
        ),
    ),
)
TINY = {
    "model.num-layers": "2",
    "model.embed-dim": "32",
    "model.num-heads": "2",
    "model.ff-dim": "64",
    "model.max-seq-len": "64",
    "train.batch-size": "4",
    "train.micro-batch-size": "4",
    "train.precision": "fp32",
    "train.compile": "off",
    "tokenizer.kind": "word",  # GPT-2's tokenizer would need a download
}


class Plan:
    """Runs the steps, and keeps the time left and the file of results.

    Args:
        out: the folder of results, runs and logs.
        minutes: time for all steps together.
        tiny: use small models and short times, for a CPU, and train on `text`.
    """

    def __init__(self, out: Path, minutes: float, tiny: bool, text: Path | None):
        self.out, self.tiny, self.text = out, tiny, text
        self.end = time.monotonic() + 60 * minutes
        self.results = out / "results.jsonl"
        out.mkdir(parents=True, exist_ok=True)

    def left(self) -> float:
        """Seconds until everything must be finished."""
        return self.end - time.monotonic()

    def run(self) -> bool:
        """Run the steps that have no result yet. Returns whether all steps have a result now."""
        done = {line["name"] for line in self._lines()}
        for step in PLAN:
            if step.name not in done and self.left() > SPARE:
                self._train(step) if isinstance(step, Training) else self._command(step)
        return {step.name for step in PLAN} == {line["name"] for line in self._lines()}

    def _lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.results.read_text().splitlines()] if self.results.is_file() else []

    def _train(self, step: Training) -> None:
        run, seconds = self.out / "runs" / step.name, 4.0 if self.tiny else step.seconds
        minutes = max(0.02, min(seconds, self.left() - 2 * SPARE * (not self.tiny)) / 60)
        words = ["train", step.recipe, *self._flags(step.flags), "--name", step.name]
        words += ["--logging.runs-dir", str(run.parent), "--train.max-minutes", f"{minutes:.3f}"]
        words += ["--train.sample-every", "0", "--train.save-every", "200"]
        if (run / "config.yaml").is_file():
            words.append("--resume")  # the time left may differ from the first start's
        started = time.monotonic()
        self._minigpt(step.name, words, 60 * minutes + 3 * SPARE)
        if not (run / "checkpoints" / "best").exists():
            return  # its log says why
        scores = {}
        for split, more in (("val", ()), ("test", ()), ("test", ("--stride", "32"))):
            said = self._minigpt(step.name, ["eval", str(run), "--split", split, "--json", *more], self.left())
            scores[" ".join((split, *more))] = json.loads(said) if said else None
        self._write(step.name, words, started, {"goal": step.goal, "scores": scores})

    def _flags(self, flags: Iterable[str]) -> list[str]:
        """These flags; if tiny, with two narrow layers, short windows and the given text instead."""
        given = iter(flags)
        pairs = dict(zip(given, given, strict=True))
        if self.tiny:
            pairs |= {f"--{name}": value for name, value in TINY.items()} | {"--data.source": str(self.text)}
        return [word for pair in pairs.items() for word in pair]

    def _command(self, step: Command) -> None:
        words = [*step.words, *self._flags(step.flags)]
        started = time.monotonic()
        if said := self._minigpt(step.name, words, min(self.left(), step.seconds + SPARE)):
            self._write(step.name, words, started, json.loads(said))

    def _minigpt(self, name: str, words: list[str], seconds: float) -> str:
        """The command's output; empty if it failed. When its time is over it is stopped, as by Ctrl-C."""
        print(f"{self.left():4.0f} s left: minigpt {' '.join(words)}", flush=True)
        with (self.out / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "minigpt", *words]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HOME) as process:
                try:
                    said, _ = process.communicate(timeout=max(1.0, seconds))
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGINT)
                    said, _ = process.communicate()
        if process.returncode:
            print(f"{name}: exit code {process.returncode}; see {name}.log", flush=True)
            return ""
        return said

    def _write(self, name: str, words: list[str], started: float, result: dict[str, Any]) -> None:
        line = {"name": name, "command": " ".join(["minigpt", *words]), "seconds": round(time.monotonic() - started, 1)}
        line |= {"device": device(), "commit": commit(), "result": result}
        with self.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        print(f"{self.left():4.0f} s left: {name}: {json.dumps(result)[:400]}", flush=True)


def device() -> str:
    """The name of the GPU, or the CPU's instruction set."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else torch.backends.cpu.get_cpu_capability()


def commit() -> str:
    """The commit of this tree, if git is installed."""
    try:
        asked = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=HOME, capture_output=True, text=True, check=False
        )
    except OSError:
        return "unknown"
    return asked.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of results, runs and logs")
    parser.add_argument("--minutes", type=float, default=13.0, help="time for all steps together (default: 13)")
    parser.add_argument("--tiny", action="store_true", help="small models and short times, for a CPU")
    parser.add_argument("--text", type=Path, help="with --tiny: a text file to learn")
    args = parser.parse_args()
    if args.tiny and args.text is None:
        parser.error("--tiny needs --text FILE")
    text = args.text.resolve() if args.text else None
    sys.exit(0 if Plan(args.out.resolve(), args.minutes, args.tiny, text).run() else 1)


if __name__ == "__main__":
    main()
