"""Test `train TEXT --budget B`: compare predicted and measured loss, and promised and used time.

    MINIGPT_DATA=../shared/data python benchmarks/budget.py --out /tmp/dial

Runs the command in its own processes, for 1, 3 and 10 minutes, on Tiny Shakespeare and WikiText-2 (about half
an hour in all), then scores the last checkpoint on the whole validation text. The used time does not include the
scoring. Prints a table.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch

from minigpt.data import eval_batches
from minigpt.runs.load import load_run
from minigpt.training import validation_loss


def main() -> None:
    """Train a run for each text and budget, score it, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("dial"), help="directory of the runs, new or empty")
    parser.add_argument("--budgets", nargs="+", default=["1m", "3m", "10m"])
    parser.add_argument("--texts", nargs="+", default=["shakespeare", "wikitext-2"])
    args = parser.parse_args()
    print("| text | budget | layers, width | steps | passes | predicted | measured | error | promised | took | error |")
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for text in args.texts:
        for budget in args.budgets:
            print(row(text, budget, args.out), flush=True)


def row(text: str, budget: str, folder: Path) -> str:
    """One line of the table."""
    name = f"{Path(text).stem}-{budget}"
    flags = ["--budget", budget, "--name", name, "--logging.runs-dir", str(folder)]
    started = time.perf_counter()
    subprocess.run([sys.executable, "-m", "minigpt", "train", text, *flags], check=True, capture_output=True)
    took = time.perf_counter() - started
    receipt = json.loads((folder / name / "receipt.json").read_text(encoding="utf-8"))["budget"]
    run = load_run(folder / name / "checkpoints" / "last")
    state = json.loads((run.checkpoint / "state.json").read_text(encoding="utf-8"))["train"]
    seq_len, val = run.config.model.max_seq_len, run.prepared().splits["val"].tokens
    with torch.inference_mode():
        reached = validation_loss(run.model, eval_batches(val, seq_len, seq_len, 2048 // seq_len), run.runtime)
    predicted, promised = receipt["predicted_loss"], receipt["promised_seconds"]
    passes = state["tokens"] / len(run.prepared().splits["train"].tokens)
    cells = [
        text, budget, f"{run.config.model.num_layers} x {run.config.model.embed_dim}", f"{state['step']:,}",
        f"{passes:.2g}", f"{predicted:.3f}", f"{reached:.3f}", f"{reached / predicted - 1:+.1%}",
        f"{promised:.1f} s", f"{took:.1f} s", f"{took / promised - 1:+.1%}",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
