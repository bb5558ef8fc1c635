"""Measure what each trick for small texts gains: one run per trick and seed on a tenth of WikiText-2, in words.

    python benchmarks/tricks.py run benchmarks/tricks.jsonl --minutes 40     # does the runs that are missing
    python benchmarks/tricks.py table benchmarks/tricks.jsonl

A model of 4 layers of 128 reads a tenth of the training text 12 times (2.5 M words). Another tenth is held out, and
all of it is scored. Each core does one run at a time. Every finished run adds one line to the file, so you can stop
the script at any moment.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from minigpt.data.named_datasets import NAMED
from minigpt.download import locate

SEEDS = (1, 2)
TENTH = 1_079_000
"""Bytes of a tenth of the training text; each tenth ends at the end of an article."""
SHAPE = "model.num_layers=4 model.embed_dim=128 model.num_heads=4 model.max_seq_len=128 tokenizer.kind=word"
LENGTH = "data.val_fraction=0.5 train.batch_size=16 train.max_steps=1224"
OTHER = "train.eval_every=153 train.compile=on model.attention=reference train.sample_every=0 train.save_every=100000"
WORDS = "model.word_dropout=0.2"
INPUT = "model.input_dropout=0.3"
OUTPUT = "model.output_dropout=0.3"
BLOCKS = "model.qkv_dropout=0.1 model.hidden_dropout=0.1 model.block_dropout=0.1"
ATTENTION = "model.attention_dropout=0.1"
DROPOUTS = " ".join((WORDS, INPUT, OUTPUT, BLOCKS, ATTENTION))
LOCKED = "model.locked_dropout=input,qkv,hidden,block,output"
MASKED = "train.masked_inputs=0.5"
AVERAGE = "train.average_last=0.2"
DECAY = "optimizer.weight_decay=0.4"
SOFTMAXES = "model.softmaxes=3"
TRICKS = {
    "none": "",
    "dropout 0.1, the old way": "model.dropout=0.1",
    "words": WORDS,
    "input": INPUT,
    "output": OUTPUT,
    "blocks": BLOCKS,
    "attention": ATTENTION,
    "all dropouts": DROPOUTS,
    "all dropouts, locked": f"{DROPOUTS} {LOCKED}",
    "masked inputs": MASKED,
    "average of the last fifth": AVERAGE,
    "weight decay 0.4": DECAY,
    "decay opposite to the rate": f"{DECAY} schedule.weight_decay=opposite",
    "three softmaxes": SOFTMAXES,
    "dropouts, masks, average": f"{DROPOUTS} {MASKED} {AVERAGE}",
    "all together": f"{DROPOUTS} {LOCKED} {MASKED} {AVERAGE} {DECAY} {SOFTMAXES}",
}


def two_tenths(folder: Path) -> Path:
    """Write a file of two tenths of the text, whole articles: the first is learned, the second is held out."""
    text = locate(NAMED["wikitext-2"]["train"].file).read_bytes()
    ends = [text.index(b"\n = ", part * TENTH) + 1 for part in (1, 2)]
    path = folder / "tenths.txt"
    path.write_bytes(text[: ends[1]])
    return path


def start(name: str, seed: int, text: Path, core: int, folder: Path) -> subprocess.Popen[bytes]:
    """Start a run on one core."""
    settings = [pair.split("=") for pair in f"{SHAPE} {LENGTH} {OTHER} {TRICKS[name]} train.seed={seed}".split()]
    flags = [word for key, value in settings for word in (f"--{key}".replace("_", "-"), value)]
    command = ["taskset", "-c", str(core), sys.executable, "-m", "minigpt", "train", str(text), *flags]
    command += ["--logging.runs-dir", str(folder), "--name", f"run-{core}"]
    with (folder / f"{core}.log").open("w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"})


def result(name: str, seed: int, run: Path, seconds: float) -> dict[str, Any]:
    """The line of a finished run; deletes the run's folder, since the next run uses the same name."""
    losses = [line["val_loss"] for line in map(json.loads, (run / "metrics.jsonl").open()) if "val_loss" in line]
    subprocess.run(["rm", "-rf", str(run)], check=True)
    return {"trick": name, "seed": seed, "val_loss": losses[-1], "best": min(losses), "seconds": round(seconds)}


def run(file: Path, minutes: float) -> None:
    """Do the missing runs, one per core, until the time is over."""
    known = {(line["trick"], line["seed"]) for line in read(file)}
    todo = [(name, seed) for seed in SEEDS for name in TRICKS if (name, seed) not in known]
    end, working = time.monotonic() + 60 * minutes, {}
    with tempfile.TemporaryDirectory() as folder:
        text = two_tenths(Path(folder))
        while working or (todo and time.monotonic() < end):
            for core in range(os.cpu_count() or 1):
                if core in working and working[core][0].poll() is not None:
                    process, name, seed, started = working.pop(core)
                    if process.returncode:
                        sys.exit((Path(folder) / f"{core}.log").read_text())
                    line = result(name, seed, Path(folder) / f"run-{core}", time.monotonic() - started)
                    with file.open("a") as out:
                        out.write(json.dumps(line) + "\n")
                    print(line, flush=True)
                if core not in working and todo and time.monotonic() < end:
                    name, seed = todo.pop(0)
                    working[core] = start(name, seed, text, core, Path(folder)), name, seed, time.monotonic()
            time.sleep(1)


def read(file: Path) -> list[dict[str, Any]]:
    """The lines in the file; none if there is no file."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def table(file: Path) -> None:
    """Print the mean held-out losses over the seeds, and the gain of each trick."""
    lines = read(file)
    means = {
        name: [statistics.mean(line[key] for line in lines if line["trick"] == name) for key in ("val_loss", "best")]
        for name in TRICKS
        if any(line["trick"] == name for line in lines)
    }
    print("| trick | seeds | held-out loss at the end | gain | at its best | gain |\n|---|---|---|---|---|---|")
    for name, (last, best) in means.items():
        seeds = sum(line["trick"] == name for line in lines)
        gains = means["none"][0] - last, means["none"][1] - best
        print(f"| {name} | {seeds} | {last:.3f} | {gains[0]:+.3f} | {best:.3f} | {gains[1]:+.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "table"):
        commands.add_parser(name).add_argument("file", type=Path)
    commands.choices["run"].add_argument("--minutes", type=float, default=60.0, help="start no run after this time")
    args = parser.parse_args()
    if args.command == "run":
        run(args.file, args.minutes)
    else:
        table(args.file)


if __name__ == "__main__":
    main()
