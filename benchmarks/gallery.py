"""Train on four texts for 1, 10 and 60 minutes, and write the page that shows what each model writes.

    python benchmarks/gallery.py train --minutes 1 10 --machine "EPYC of Zen 3 (AVX2)"    # trains what is missing
    python benchmarks/gallery.py page                                                # writes docs/gallery.md

Each training is `minigpt train TEXT --budget 10m`. Every finished one adds a line to gallery.jsonl: you can stop the
script at any moment. Its figures are those of a machine that does nothing else.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from minigpt.console import counted
from minigpt.data.named_datasets import NAMED
from minigpt.data.stories.generator import generate_stories
from minigpt.download import locate

ROOT = Path(__file__).parent.parent
FILE, PAGE = ROOT / "benchmarks" / "gallery.jsonl", ROOT / "docs" / "gallery.md"
TEXTS = {
    "stories": ("2 MB of stories, written by the grammar of `minigpt demo`", "Once upon a time"),
    "shakespeare": ("Tiny Shakespeare, 1.1 MB of plays", "ROMEO:\n"),
    "wikipedia": ("the first 2 MB of WikiText-2, articles of Wikipedia", "In the year"),
    "python": ("the first 2.4 MB of this project's Python files", "def "),
}
"""What each text is, and the prompt that its models continue."""
LENGTH = "--max-new-tokens 120 --temperature 0.8 --top-p 0.95 --seed 1"
HEAD = """# What you get in {times}

These models were trained from nothing on one core by `minigpt train TEXT --budget {longest}m`, or less. Each text below
is the first that the model wrote; none was chosen. This command wrote it, with the first words of the text as PROMPT:

```text
minigpt generate RUN --prompt PROMPT {length}
```

Bits per byte say how well a model predicts text that it never saw: fewer is better ([words](words.md)). A 5-gram model
only counts which characters follow which others. The longer a run, the larger the model that `--budget` chooses. A run
ends sooner if more passes over its text would not help ([budgets](budget.md)).

| text | 5-gram | {minutes} |
|---|---|{rule}|
{rows}
"""


def write_text(name: str, folder: Path) -> Path:
    """Write one of the four texts to a file of the folder."""
    path = folder / f"{name}.txt"
    if name == "stories":
        path.write_text("\n".join(story.strip() for story in generate_stories(7969, 7)), encoding="utf-8")
    elif name == "python":
        files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
        path.write_bytes(b"".join((ROOT / file).read_bytes() for file in files.stdout.split())[:2_400_000])
    else:
        named = NAMED["shakespeare" if name == "shakespeare" else "wikitext-2"]["train"]
        path.write_bytes(locate(named.file).read_bytes()[:2_000_000])
    return path


def minigpt(*words: str) -> str:
    """Run a command of minigpt; returns what it prints."""
    command = [sys.executable, "-m", "minigpt", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout


def entry(name: str, minutes: int, run: Path, machine: str) -> dict[str, Any]:
    """The line of a finished run: its figures, and the first text that it writes."""
    scores = json.loads(minigpt("eval", str(run), "--json"))
    sample = json.loads(minigpt("generate", str(run), "--prompt", TEXTS[name][1], *LENGTH.split(), "--json"))
    budget = json.loads((run / "receipt.json").read_text(encoding="utf-8"))["budget"]
    end = json.loads((run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    commit = subprocess.run(["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return {
        "text": name,
        "minutes": minutes,
        "commit": commit.stdout.strip(),
        "machine": machine,
        "parameters": budget["parameters"],
        "passes": round(budget["passes"], 1),
        "took": round(end["seconds"] / 60, 1),
        "bits_per_byte": round(scores["bits_per_byte"], 3),
        "predicted": round(budget["predicted_bits_per_byte"], 3),
        "five_gram": round(scores["floors"]["five_gram"], 3),
        "sample": sample["samples"][0],
    }


def train(texts: list[str], minutes: list[int], machine: str) -> None:
    """Train what gallery.jsonl does not have."""
    known = {(line["text"], line["minutes"]) for line in read()}
    with tempfile.TemporaryDirectory() as folder:
        for length in minutes:
            for name in texts:
                if (name, length) in known:
                    continue
                flags = ["--budget", f"{length}m", "--name", f"{name}-{length}", "--logging.runs-dir", folder]
                minigpt("train", str(write_text(name, Path(folder))), *flags)
                add(entry(name, length, Path(folder) / f"{name}-{length}", machine))


def add(line: dict[str, Any]) -> None:
    """Add a line to gallery.jsonl."""
    with FILE.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line, ensure_ascii=False) + "\n")
    print(line, flush=True)


def read() -> list[dict[str, Any]]:
    """The lines of gallery.jsonl; none if there is no file."""
    return [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()] if FILE.is_file() else []


def page(lines: list[dict[str, Any]]) -> str:
    """The whole page, in Markdown."""
    found = {(line["text"], line["minutes"]): line for line in lines}
    minutes = sorted({line["minutes"] for line in lines})
    rows, parts = [], []
    for name, (what, _) in TEXTS.items():
        runs = {length: found[name, length] for length in minutes if (name, length) in found}
        bits = [f"{runs[length]['bits_per_byte']:.3f}" if length in runs else "not measured" for length in minutes]
        floor = next(iter(runs.values()))["five_gram"]
        rows.append(f"| {what} | {floor:.3f} | {' | '.join(bits)} |")
        parts += [f"\n## {name.capitalize()}\n", *map(shown, runs.values())]
    head = HEAD.format(
        times=f"{', '.join(map(str, minutes[:-1]))} and {minutes[-1]} minutes",
        longest=minutes[-1],
        length=LENGTH,
        minutes=" | ".join(counted(length, "minute") for length in minutes),
        rule="|".join("---" for _ in minutes),
        rows="\n".join(rows),
    )
    return head + "".join(parts)


def shown(run: dict[str, Any]) -> str:
    """One run under its text: its figures, machine, and what it wrote, in lines of at most 100 characters."""
    figures = f"{run['parameters'] / 1e6:.1f} M parameters, {run['passes']:g} passes over the text"
    figures += f" in {run['took']:g} minutes of training" if "took" in run else ""
    bits = f"{run['bits_per_byte']:.3f} bits per byte (predicted {run['predicted']:.2f})"
    machine = f"{run['machine']}; commit {run['commit']}"
    lines = (TEXTS[run["text"]][1] + run["sample"]).strip().splitlines()
    text = "\n".join(textwrap.fill(line, 100).rstrip() for line in lines)
    return f"\n### {counted(run['minutes'], 'minute')}\n\n{figures}, {bits}.\n{machine}.\n\n```text\n{text}\n```\n"


def main() -> None:
    """Train or write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train")
    training.add_argument("--minutes", type=int, nargs="+", default=[1, 10, 60])
    training.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    training.add_argument("--machine", required=True, help="what the page calls the machine")
    commands.add_parser("page")
    args = parser.parse_args()
    if args.command == "train":
        train(args.texts, args.minutes, args.machine)
    else:
        PAGE.write_text(page(read()), encoding="utf-8")


if __name__ == "__main__":
    main()
