"""Fit the law of `minigpt.runs.budget`: a grid of small runs of our own, then its constants.

    MINIGPT_DATA=../shared/data python benchmarks/scaling.py run points.jsonl     (continues where it stopped)
    python benchmarks/scaling.py fit points.jsonl

Every run has a schedule that ends with it, since the loss in the middle of a longer run is not what a run of that
length reaches.
"""

import argparse
import json
import math
import time
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from minigpt.config import ModelConfig, load_config
from minigpt.data import Batches, eval_batches
from minigpt.model import GPT
from minigpt.runs.budget import rule
from minigpt.runs.budget.law import LAWS, Law, Text
from minigpt.runs.data import make_tokenizer, prepare_data
from minigpt.runs.feeds import bytes_per_token
from minigpt.runs.resolve import resolve_vocabulary
from minigpt.runtime.device import make_runtime
from minigpt.training import Trainer, make_optimizer

FLOORS = {"text": 0.4, "stories": 0.293}
"""The law's E, as a share of the 5-gram model's loss. Such small runs cannot determine it. For English it is 0.8 to 0.9
bits per byte, which the largest models reach; for stories it is the grammar's entropy."""
START = (0.2, 0.25, 0.5, 0.17, 5.0, 4.0, 100.0)
"""Values at which the fit starts, and near which it stays: few runs determine M and c, and no run of stories does."""
FIVE_GRAM = {"shakespeare": 1.5667, "wikitext-2": 1.4101, "stories": 0.6594}
"""Nats per byte, by `minigpt.runs.budget.within.describe`."""
BY_HEART = 1.0
"""If the training loss ends this far below the validation loss, the run overfits; the law does not describe that."""
HELD_OUT = 0.025
"""The loss on the validation text minus the loss on the last tenth of the training text (docs/LOG.md)."""
# text, (layers, width), sequences, context, steps, loss, training bytes: earlier runs of RESULTS.md and docs/LOG.md
EARLIER = [
    ("shakespeare", (4, 128), 16, 256, 960, 1.4609, 1_003_854),
    ("shakespeare", (4, 128), 16, 256, 900, 1.4698, 1_003_854),
    ("shakespeare", (3, 128), 8, 256, 500, 1.6063, 1_003_854),
    ("shakespeare", (2, 128), 4, 128, 400, 1.8915, 1_003_854),
    ("shakespeare", (4, 256), 16, 256, 328, 1.495 + HELD_OUT, 903_468),
    ("shakespeare", (6, 192), 16, 256, 360, 1.486 + HELD_OUT, 903_468),
    ("shakespeare", (4, 192), 16, 256, 533, 1.472 + HELD_OUT, 903_468),
    ("shakespeare", (8, 128), 16, 256, 490, 1.470 + HELD_OUT, 903_468),
    ("shakespeare", (6, 128), 16, 256, 655, 1.441 + HELD_OUT, 903_468),
    ("shakespeare", (6, 128), 8, 256, 1200, 1.437 + HELD_OUT, 903_468),
    ("shakespeare", (6, 384), 64, 256, 2000, 1.4697, 1_003_854),  # nanoGPT's best checkpoint; its step is estimated
    ("stories", (4, 128), 16, 256, 750, 0.286, 2_684_606),
]
VALIDATION = 111_540
"""Validation tokens scored: all of Tiny Shakespeare's characters."""
TEXTS: dict[str, dict[str, Any]] = {
    "shakespeare": {},
    "wikitext-2": {},
    "stories": {},
    "wikitext-2 bpe": {"data.source": "wikitext-2", "tokenizer.kind": "bpe", "tokenizer.vocab_size": 1024},
}
XS, S, M, L = (2, 32), (2, 64), (3, 96), (4, 128)
SHORT, LONG = 100_000, 400_000
# text, (layers, width), tokens, unique tokens (0: all), times the rule's batch, context (0: the rule's)
GRID = [
    *((text, shape, SHORT, 0, 1, 0) for text in ("shakespeare", "wikitext-2", "stories") for shape in (XS, S, M)),
    *((text, shape, LONG, 0, 1, 0) for text in ("shakespeare", "wikitext-2", "stories") for shape in (XS, S, M)),
    ("shakespeare", S, LONG, 0, 4, 0),  # in fewer, larger steps
    ("shakespeare", S, LONG, 0, 1, 128),  # other contexts and batches
    ("shakespeare", S, LONG, 0, 0.5, 128),
    ("shakespeare", S, LONG, 50_000, 1, 0),  # repeated 8, 2 and 20 times
    ("shakespeare", S, LONG, 200_000, 1, 0),
    ("shakespeare", XS, LONG, 20_000, 1, 0),
    ("shakespeare", S, LONG, 20_000, 1, 0),
    ("wikitext-2", XS, 1_600_000, 0, 1, 0),
    ("wikitext-2 bpe", S, 200_000, 0, 1, 0),
    ("wikitext-2", S, 1_600_000, 0, 1, 0),
    ("shakespeare", S, LONG, 12_000, 1, 0),
    ("shakespeare", M, LONG, 20_000, 1, 0),
    ("shakespeare", L, 800_000, 100_000, 1, 0),
    ("shakespeare", XS, 1_600_000, 0, 1, 0),
    ("shakespeare", M, LONG, 100_000, 1, 0),
    ("wikitext-2", L, 800_000, 0, 1, 0),
    ("stories", S, 1_600_000, 0, 1, 0),
    ("shakespeare", M, 1_200_000, 0, 1, 0),
    ("wikitext-2", M, 1_600_000, 0, 1, 0),
    ("wikitext-2 bpe", M, LONG, 0, 1, 0),
    ("shakespeare", M, SHORT, 0, 4, 0),
    ("shakespeare", S, 1_600_000, 50_000, 1, 0),
    ("shakespeare", S, 1_600_000, 0, 8, 0),  # long runs in few steps
    ("shakespeare", S, 1_600_000, 0, 4, 0),
    ("wikitext-2", S, 800_000, 0, 8, 0),
    ("wikitext-2", S, 800_000, 0, 4, 0),
    ("shakespeare", M, 1_200_000, 0, 4, 0),
]


def train_point(
    text: str, shape: tuple[int, int], tokens: int, unique: int, times: float, context: int
) -> dict[str, Any]:
    """Train one run by the rule; returns its settings and its loss."""
    config = load_config(None, {"data.source": text} | TEXTS[text])
    tokenizer = make_tokenizer(config)
    prepared = prepare_data(config, tokenizer)
    train, val = (prepared.splits[split].tokens for split in ("train", "val"))
    train, scored = spread(train, unique) if unique else train, val[:VALIDATION]
    seq_len = context or rule.context(tokens)
    batch = int(rule.smallest_batch(tokens, seq_len) * times)
    steps = max(1, tokens // (batch * seq_len))
    chosen = rule.shape(*shape, seq_len, tokenizer.vocab_size)
    weights = rule.Size.of(load_config(None, chosen | {"model.vocab_size": tokenizer.vocab_size}).model).parameters
    chosen |= rule.rates(steps, tokens / len(train), weights / len(train))
    chosen |= {"train.batch_size": batch, "train.max_steps": steps, "train.eval_every": 10**9}
    config = resolve_vocabulary(load_config(None, {"data.source": text} | TEXTS[text] | chosen), tokenizer)
    runtime = make_runtime(precision="fp32")
    model = GPT(config.model, seed=1)
    model.use_attention("sdpa")
    trainer = Trainer(
        model, make_optimizer(model, config.optimizer, "fp32"), Batches(train, batch, seq_len, 1),
        lambda: eval_batches(scored, seq_len, seq_len, max(1, 2048 // seq_len)),
        config.train, config.schedule, runtime, config.optimizer.learning_rate,
    )  # fmt: skip
    state = trainer.run()
    assert state.val_loss is not None
    return {
        "text": text, "layers": shape[0], "width": shape[1], "parameters": rule.Size.of(config.model).parameters,
        "context": seq_len, "batch": batch, "steps": steps, "tokens": state.tokens, "unique": len(train),
        "bytes_per_token": bytes_per_token(val, prepared.meta["splits"]["val"]["bytes"], tokenizer),
        "loss": state.val_loss, "training_loss": float(trainer.loss), "seconds": round(state.seconds, 1),
    }  # fmt: skip


def spread(tokens: np.ndarray, count: int) -> np.ndarray:
    """Take this many tokens, in blocks of 1,000 from all over the text, since its beginning may be a different kind of
    text.
    """
    blocks = np.linspace(0, len(tokens) - 1000, count // 1000).astype(int)
    return np.concatenate([tokens[start : start + 1000] for start in blocks])


def run(out: Path) -> None:
    """Run the points of the grid that are still missing, one after another."""
    done = [json.loads(line)["point"] for line in out.read_text().splitlines()] if out.exists() else []
    for point in GRID:
        key = json.dumps(point)
        if key in done:
            continue
        started = time.perf_counter()
        row = {"point": key} | train_point(*point)
        with out.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), f"{time.perf_counter() - started:.0f} s", flush=True)


def fit(points: Path) -> None:
    """Print constants for each kind of text, their errors, and the errors on a text that was left out of the fit."""
    rows = [json.loads(line) for line in points.read_text().splitlines()] + [earlier_row(*row) for row in EARLIER]
    rows = [row for row in rows if row["loss"] - row.get("training_loss", row["loss"]) < BY_HEART]
    for kind in LAWS:
        own = [row for row in rows if kind_of(row) == kind]
        law = fit_law(own, kind)
        print(f"\n{kind}: {len(own)} runs\n    Law({', '.join(f'{value:.4g}' for value in astuple(law))})")
        for row in own:
            print(
                f"{name_of(row)} {row['loss']:.3f} {predicted(law, row):.3f} {100 * math.expm1(error(law, row)):+.1f} %"
            )
        errors = [abs(error(law, row)) for row in own]
        most = np.quantile(errors, 0.9)
        print(f"mean error {np.mean(errors):.1%}, 90 % of them below {most:.1%}, largest {max(errors):.1%}")
        for text in sorted({row["text"].split()[0] for row in own} if kind == "text" else ()):
            unseen = [row for row in own if row["text"].startswith(text)]
            other = fit_law([row for row in own if row not in unseen], kind)
            off = [error(other, row) for row in unseen]
            print(f"{text} by constants fitted without it: mean {np.mean(off):+.1%}, largest {max(off, key=abs):+.1%}")


def fit_law(rows: list[dict[str, Any]], kind: str) -> Law:
    """Least squares on the loss's logarithm, Huber loss beyond 2 %."""
    start = np.log(START)

    def law(parameters: np.ndarray) -> Law:
        return Law(FLOORS[kind], *(float(value) for value in np.exp(parameters)))

    def residuals(parameters: np.ndarray) -> list[float]:
        return [error(law(parameters), row) for row in rows] + list(0.01 * (parameters - start))

    return law(least_squares(residuals, start, loss="huber", f_scale=0.02).x)


def error(law: Law, row: dict[str, Any]) -> float:
    """log(predicted / measured)."""
    return math.log(predicted(law, row) / row["loss"])


def predicted(law: Law, row: dict[str, Any]) -> float:
    """The loss of a run by the law."""
    five_gram = FIVE_GRAM[row["text"].split()[0]]
    text = Text(row["unique"], VALIDATION, 65, row["bytes_per_token"], five_gram, kind_of(row))
    return law.loss(text, row["parameters"], row["tokens"], row["steps"])


def kind_of(row: dict[str, Any]) -> str:
    """The kind of text, which selects the constants."""
    return "stories" if row["text"] == "stories" else "text"


def name_of(row: dict[str, Any]) -> str:
    """A run's name in a column."""
    size, read = f"{row['layers']} x {row['width']}", f"{row['tokens']:,} tokens of {row['unique']:,}"
    return f"{row['text']:<15}{size:<8} {read:>32}, {row['steps']:>4} steps"


def earlier_row(
    text: str, shape: tuple[int, int], batch: int, context: int, steps: int, loss: float, unique: int
) -> dict[str, Any]:
    """A line of `EARLIER` in the form that `train_point` returns."""
    layers, width = shape
    parameters = rule.Size.of(ModelConfig(num_layers=layers, embed_dim=width, num_heads=2, vocab_size=65)).parameters
    return {
        "text": text, "layers": layers, "width": width, "parameters": parameters, "steps": steps,
        "tokens": batch * context * steps, "unique": unique, "bytes_per_token": 1.0, "loss": loss,
    }  # fmt: skip


def main() -> None:
    """Run the grid, or fit its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "fit"))
    parser.add_argument("points", type=Path)
    args = parser.parse_args()
    {"run": run, "fit": fit}[args.what](args.points)


if __name__ == "__main__":
    main()
