"""Compute a run's validation loss by the rule of nanoGPT's `estimate_loss`, next to minigpt's.

    python benchmarks/nanogpt_rule.py runs/nanogpt-shakespeare-char-cpu --batches 20 --draws 10

nanoGPT takes the mean loss of `eval_iters` batches of random windows, so each evaluation gives another result. Here it
is repeated `--draws` times, to see how much the results differ. minigpt reads the whole split once, in windows side by
side.
"""

import argparse
import json
from collections.abc import Iterator

import numpy as np
import torch

from minigpt.data import eval_batches
from minigpt.runs.data import prepare_data
from minigpt.runs.load import load_run
from minigpt.runtime.device import make_runtime
from minigpt.training.step import validation_loss


def windows(tokens: np.ndarray, count: int, batch: int, context: int, seed: int) -> Iterator[tuple]:
    """`count` batches of windows that begin at random places, as nanoGPT's `get_batch` draws them."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        starts = random.integers(len(tokens) - context, size=batch)
        rows = torch.from_numpy(np.stack([tokens[start : start + context + 1] for start in starts]).astype(np.int64))
        yield rows[:, :-1], rows[:, 1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--draws", type=int, default=10)
    args = parser.parse_args()
    run, runtime = load_run(args.run, "cpu"), make_runtime("cpu", "fp32")
    tokens = prepare_data(run.config, run.tokenizer).splits["val"].tokens
    batch, context = run.config.train.batch_size, run.config.model.max_seq_len
    draws = [
        validation_loss(run.model, windows(tokens, args.batches, batch, context, seed), runtime)
        for seed in range(args.draws)
    ]
    print(json.dumps({
        "run": args.run, "step": run.step,
        "ours": round(validation_loss(run.model, eval_batches(tokens, context, context, 32), runtime), 4),
        "nanogpt": round(float(np.mean(draws)), 4),
        "draws": [round(loss, 4) for loss in draws],
    }))  # fmt: skip


if __name__ == "__main__":
    main()
