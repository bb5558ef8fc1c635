"""Compare full fine-tuning with LoRA: a run on Shakespeare learns the stories, a run on the stories learns Shakespeare.

    python benchmarks/adaptation.py --runs adaptation --out docs/adaptation.svg

Both bases read bytes, so each can read the other's text. Each fine-tuning has the same number of steps. The losses
are in bits per byte, on the whole validation text of the new text and of the old text; the second one shows how much
is forgotten. Seconds are processor time, so other work on the machine does not count. Set OMP_NUM_THREADS=1 to measure
one core.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from minigpt.config import load_config
from minigpt.evals import evaluate_run
from minigpt.explanation import plot_runs
from minigpt.runs.data import prepare_data
from minigpt.runs.finetune import fine_tune
from minigpt.runs.load import load_run
from minigpt.runs.train import train
from minigpt.weights import checkpoint

TEXTS = ("shakespeare", "stories")
RATE = 3e-3  # rate of training from scratch at this width; `finetune` uses a tenth of it by default
WAYS: dict[str, dict[str, Any]] = {
    "full": {"optimizer.learning_rate": RATE},
    "full, gentle": {},
    "LoRA 8": {"lora.rank": 8, "optimizer.learning_rate": RATE},
    "LoRA 64": {"lora.rank": 64, "optimizer.learning_rate": RATE},
}


def settings(folder: Path, text: str, steps: int) -> dict[str, Any]:
    """The settings of all runs."""
    return {
        "data.source": text,
        "logging.runs_dir": str(folder),
        "logging.plots": False,
        "train.max_steps": steps,
        "train.batch_size": 16,
        "train.eval_every": max(1, steps // 8),
        "train.eval_batches": 10,
        "train.save_every": steps,
        "train.sample_every": 0,
        "train.precision": "fp32",
        "train.compile": "off",
        "schedule.warmup_steps": 20,
    }


def base(folder: Path, text: str, steps: int) -> Path:
    """A model of 4 x 128, context 256, trained from scratch (or continued)."""
    given = {
        "tokenizer.kind": "byte", "model.max_seq_len": 256, "schedule.kind": "linear", "schedule.min_lr_ratio": 0.0
    }  # fmt: skip
    name = f"{text}-{steps}"
    train(load_config("demo", settings(folder, text, steps) | given), name=name, quiet=True)
    return folder / name


def adapt(folder: Path, start: Path, text: str, way: str, steps: int) -> dict[str, Any]:
    """Fine-tune once; returns its figures."""
    name = f"{start.name}-{way}".replace(", ", "-").replace(" ", "-")
    began = time.process_time()
    run = fine_tune(start, text, settings(folder, text, steps) | WAYS[way], name=name, quiet=True)
    seconds = time.process_time() - began
    trained = sum(parameter.numel() for parameter in run.model.parameters() if parameter.requires_grad)
    files = ("model.safetensors", "adapter.safetensors")
    saved = [file for file in checkpoint.resolve(run.path).iterdir() if file.name in files]
    return measured(run.path, text, other(text)) | {
        "trained_parameters": trained,
        "saved_kB": round(sum(file.stat().st_size for file in saved) / 1000),
        "cpu_seconds": round(seconds),
    }


def other(text: str) -> str:
    """The text that the base was trained on."""
    return TEXTS[1 - TEXTS.index(text)]


def measured(path: Path, learned: str, kept: str) -> dict[str, Any]:
    """Bits per byte on both texts."""
    run = load_run(path, "cpu")
    row: dict[str, Any] = {"run": path.name}
    for name, text in (("learned", learned), ("kept", kept)):
        data = prepare_data(load_config(None, {"data.source": text}), run.tokenizer)
        row[f"{name}_bits_per_byte"] = round(evaluate_run(run, prepared=data)["bits_per_byte"], 4)
    return row


def main() -> None:
    """Run both directions with each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/adaptation"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--base-steps", type=int, default=500)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    for text in TEXTS:
        start, scratch = base(args.runs, other(text), args.base_steps), base(args.runs, text, args.steps)
        print(json.dumps(measured(start, text, other(text)) | {"way": "base"}), flush=True)
        print(json.dumps(measured(scratch, text, other(text)) | {"way": "from scratch"}), flush=True)
        rows = [adapt(args.runs, start, text, way, args.steps) | {"way": way} for way in WAYS]
        for row in rows:
            print(json.dumps(row), flush=True)
        if args.out:
            paths = [args.runs / row["run"] for row in rows]
            plot_runs([scratch, *paths], args.out.with_stem(f"{args.out.stem}-{text}"))


if __name__ == "__main__":
    main()
