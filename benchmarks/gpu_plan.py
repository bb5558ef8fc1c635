"""Run the measurements that need a GPU within 13 minutes, the most important first, and write each result at once.

    python benchmarks/gpu_plan.py --out results
    python benchmarks/gpu_plan.py --out results --tiny --text my.txt    # the same steps on a CPU, in a minute or two

You can stop it at any moment. Started again with the same --out, it skips steps with a result, continues a training
from its last checkpoint, and computes the scores that are missing. A step that does not fit into the time left waits
for the next start. So if a machine ends each command after ten minutes: --minutes 9.5, then again with the rest.
results.jsonl holds one object per step: name, command, seconds, device, commit, result. A score is null if its command
failed; one that ran out of time is left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parents[1]
SPARE = 60.0
"""Seconds for starting, compiling and stopping a training, in addition to its own time. A third of an H100 took 25 to
31, and the trial of torch.compile for a new shape takes half a minute more (docs/LOG.md)."""
EVERYWHERE = ("--train.device", "cuda", "--train.eval-every", "auto", "--train.save-every", "2000")
"""A save of `record` is 443 MB and takes seconds, so it must be rare; each new best is saved too."""


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
    Training(
        "record",
        "wikitext2-record",
        420,
        ("--train.max-steps", "null"),
        "test, per word, windows that overlap: < 63.3, then < 60",
    ),
    Training(
        "small-25m",
        "small-25m",
        95,
        (
            *("--data.source", "wikitext-2", "--model.shape", "modern", "--model.max-seq-len", "512"),
            *("--model.dropout", "0.3", "--optimizer.beta2", "0.99", "--optimizer.weight-decay", "0.2"),
            *("--train.batch-size", "32", "--train.max-epochs", "null", "--train.early-stopping", "null"),
        ),
        "validation, per token: < 28.7",
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
        "validation, per token: < 35",
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
SCORES = {
    "val": ("--split", "val"),
    "test": ("--split", "test"),
    "test --stride 32": ("--split", "test", "--stride", "32"),
}
"""The scores of a training, each with its flags of `minigpt eval`."""
TINY = {
    "model.num-layers": "2",
    "model.embed-dim": "32",
    "model.num-heads": "2",
    "model.ff-dim": "64",
    "model.max-seq-len": "64",
    "train.batch-size": "4",
    "train.micro-batch-size": "4",
    "train.device": "cpu",
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
        """Run what has no result yet. Returns whether all steps have all their results now."""
        for step in PLAN:
            if not self._done(step):
                self._train(step) if isinstance(step, Training) else self._command(step)
        return all(map(self._done, PLAN))

    def _done(self, step: Training | Command) -> bool:
        line = self._lines().get(step.name)
        return line is not None and (isinstance(step, Command) or line["result"]["scores"].keys() == SCORES.keys())

    def _lines(self) -> dict[str, dict[str, Any]]:
        """The results so far, by the step's name."""
        lines = self.results.read_text().splitlines() if self.results.is_file() else []
        return {line["name"]: line for line in map(json.loads, lines)}

    def _train(self, step: Training) -> None:
        """Train, then compute the scores. A run that is in the results already is not trained again."""
        run = self.out / "runs" / step.name
        if step.name not in self._lines():
            started = time.monotonic()
            words = self._train_run(step, run)
            if words is None or self.left() <= 0:
                return  # the next start trains it, or goes on with it
            if not (run / "checkpoints" / "best").exists():
                return  # its log says why
            self._write(step.name, words, started, {"goal": step.goal, "scores": {}})
        line = self._lines()[step.name]
        scores = line["result"]["scores"]
        for name in [name for name in SCORES if name not in scores]:
            started = time.monotonic()
            said = self._minigpt(step.name, ["eval", str(run), "--json", *SCORES[name]], self.left())
            if said is not None:
                scores[name] = json.loads(said) if said else None
            line["seconds"] = round(line["seconds"] + time.monotonic() - started, 1)
            self._keep(line)

    def _train_run(self, step: Training, run: Path) -> list[str] | None:
        """Train for the step's time, or what is left of it; returns the command's words, None if there is no time.

        A run that has begun may get less: the rate then falls sooner, and the run still ends with its average.
        """
        before, seconds, spare = trained(run), 4.0 if self.tiny else step.seconds, 0.0 if self.tiny else SPARE
        if self.left() < spare + (0.0 if before else seconds):
            print(f"{self.left():4.0f} s left: too short for {step.name}", flush=True)
            return None
        seconds = min(seconds, before + self.left() - spare)
        words = ["train", step.recipe, *self._flags((*EVERYWHERE, "--train.sample-every", "0", *step.flags))]
        words += ["--name", step.name, "--logging.runs-dir", str(run.parent)]
        words += ["--train.max-minutes", f"{seconds / 60:.3f}"]
        if self.tiny:
            words += ["--data.source", str(self.text)]
        if (run / "config.yaml").is_file():
            words.append("--resume")  # the time may differ from the first start's
        self._minigpt(step.name, words, min(self.left(), seconds - before + 3 * SPARE))
        return words

    def _flags(self, flags: Iterable[str]) -> list[str]:
        """These flags; if tiny, with two narrow layers and short windows instead."""
        given = iter(flags)
        pairs = dict(zip(given, given, strict=True))
        if self.tiny:
            pairs |= {f"--{name}": value for name, value in TINY.items()}
        return [word for pair in pairs.items() for word in pair]

    def _command(self, step: Command) -> None:
        words = [*step.words, *self._flags((*EVERYWHERE[:2], *step.flags))]
        started = time.monotonic()
        if self.left() < step.seconds:
            print(f"{self.left():4.0f} s left: too short for {step.name}", flush=True)
        elif said := self._minigpt(step.name, words, min(self.left(), step.seconds + SPARE)):
            self._write(step.name, words, started, json.loads(said))

    def _minigpt(self, name: str, words: list[str], seconds: float) -> str | None:
        """The command's output; "" if it failed, None if its time was over and it was stopped.

        It is stopped by SIGTERM, after which a training saves. A shell's background jobs ignore SIGINT.
        """
        print(f"{self.left():4.0f} s left: minigpt {' '.join(words)}", flush=True)
        with (self.out / f"{name}.log").open("a") as log:
            command = [sys.executable, "-m", "minigpt", *words]
            late = False
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=HOME) as process:
                try:
                    said, _ = process.communicate(timeout=max(1.0, seconds))
                except subprocess.TimeoutExpired:
                    late = True
                    process.terminate()
                    said, _ = process.communicate()
        if process.returncode:
            print(f"{name}: exit code {process.returncode}; see {name}.log", flush=True)
            return None if late else ""
        return said

    def _write(self, name: str, words: list[str], started: float, result: dict[str, Any]) -> None:
        line = {"name": name, "command": " ".join(["minigpt", *words]), "seconds": round(time.monotonic() - started, 1)}
        self._keep(line | {"device": device(), "commit": commit(), "result": result})

    def _keep(self, line: dict[str, Any]) -> None:
        """Write the line of a step in place of its earlier one; a killed process leaves the old or the new file."""
        lines = self._lines() | {line["name"]: line}
        work = self.results.with_suffix(".tmp")
        with work.open("w") as file:
            file.writelines(json.dumps(each) + "\n" for each in lines.values())
            file.flush()
            os.fsync(file.fileno())
        work.replace(self.results)
        print(f"{self.left():4.0f} s left: {line['name']}: {json.dumps(line['result'])[:400]}", flush=True)


def trained(run: Path) -> float:
    """Seconds of training in a run's last checkpoint: --train.max-minutes counts them too."""
    last = run / "checkpoints/last"
    if not last.is_file():
        return 0.0
    return json.loads((last.parent / last.read_text().strip() / "state.json").read_text())["train"]["seconds"]


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
