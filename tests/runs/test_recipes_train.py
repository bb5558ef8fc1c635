"""Test that every shipped recipe trains a few steps on its own data, at its own size."""

import json
import math
from pathlib import Path

import pytest
from cli_run import json_of

from minigpt.config import load_config, recipes

# Fewer sequences per step, and a part of the validation split: the shape, the tokenizer and the data stay the recipe's.
LESS = {
    "gpt2-124m": ["--train.batch-size", "1", "--train.micro-batch-size", "1", "--model.max-seq-len", "256"]
    + ["--train.share-unused", "false"],  # the first loss shows init_std, not the row that half of the ids would share
    "small-25m": ["--train.batch-size", "2", "--train.micro-batch-size", "1", "--model.max-seq-len", "256"],
    "wikitext2-22m": ["--train.batch-size", "4"],
    "wikitext2-record": ["--train.batch-size", "4", "--train.micro-batch-size", "4"],
    "tiny-6.7m": ["--train.batch-size", "2"],
    "shakespeare-char": ["--train.batch-size", "8"],
    "nanogpt-shakespeare-char": ["--train.batch-size", "4"],
}

STEPS = {"gpt2-124m": 10, "small-25m": 10}  # seconds each; the others: 20


@pytest.mark.slow
@pytest.mark.parametrize("name", recipes())
def test_it_loads_and_learns_in_a_few_steps(name: str, mirror: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    assert mirror.is_dir()
    monkeypatch.chdir(tmp_path)
    steps = STEPS.get(name, 20)
    flags = ["--train.max-steps", str(steps), "--train.eval-batches", "2", "--train.eval-every", "20"]
    flags += ["--logging.log-every", "1"]
    flags += ["--train.sample-every", "0", "--schedule.warmup-steps", "5", "--logging.plots", "false"]
    report = json_of(capsys, "train", name, *flags, *LESS.get(name, []))
    assert report["step"] == steps
    lines = [json.loads(line) for line in (tmp_path / "runs" / name / "metrics.jsonl").read_text().splitlines()]
    ids = load_config(tmp_path / "runs" / name / "config.yaml").model.vocab_size
    assert ids is not None
    start = lines[0]["val_loss"] - math.log(ids)  # at step 0, without dropout
    with capsys.disabled():
        after = f"validation after {steps} steps {lines[-1]['val_loss']:.3f}"
        print(f"\n{name}: step 0 ln V {start:+.3f}, {after}, {report['seconds']} s")
    assert abs(start) < (0.15 if name == "gpt2-124m" else 0.4)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"] - 0.2  # a batch has too few tokens for this
