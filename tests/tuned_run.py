"""Give tests a tiny base, records, and `fine_tune` with small settings."""

import json
from pathlib import Path

import torch

from minigpt.config import ModelConfig, RunConfig, dump_config
from minigpt.model import GPT
from minigpt.runs.finetune import fine_tune
from minigpt.tokenizers import CharTokenizer
from minigpt.training import Hook, Trainer
from minigpt.weights import checkpoint
from minigpt.weights.checkpoint_state import CheckpointState, TrainState

TEXT = "User: Assistant: the cat sat on a mat and saw 0123456789 dogs, who ran by an old jug of quartz vex?\n" * 30
SHAPE = ModelConfig(embed_dim=32, num_heads=2, num_layers=2, max_seq_len=64, init_std=0.3)
ANSWERS = [("fox", "red"), ("sun", "hot"), ("ice", "cold"), ("cat", "mew"), ("dog", "woof"),
           ("one", "two"), ("day", "night"), ("sea", "salt"), ("jam", "sweet"), ("owl", "hoot")]  # fmt: skip


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def questions(path: Path) -> Path:
    return write(path, [{"prompt": f"the {ask}", "completion": f" {answer}"} for ask, answer in ANSWERS])


def make_base(folder: Path, seed: int = 3, **changes: object) -> Path:
    """A run of one checkpoint with random weights, far from flat."""
    tokenizer = CharTokenizer.from_texts([TEXT])
    shape = SHAPE.model_copy(update={"vocab_size": tokenizer.vocab_size, **changes})
    model = GPT(shape, seed=seed)
    state = CheckpointState(model=shape.model_dump(), train=TrainState(finished=True))
    checkpoint.save(folder / "checkpoints" / "step-00000001", {"model": model.weights()}, state)
    tokenizer.save(folder)
    (folder / "config.yaml").write_text(dump_config(RunConfig(model=shape)))
    return folder


def tune(base: Path, data: Path, name: str | None = "tuned", **settings: object):
    """`fine_tune` with settings whose dots are written __."""
    given = {
        "train.device": "cpu", "train.precision": "fp32", "model.attention": "sdpa", "logging.plots": False,
        "logging.runs_dir": str(base.parent), "train.max_steps": 6, "train.batch_size": 4, "train.sample_every": 0,
        "logging.log_every": 1,
    }  # fmt: skip
    given |= {name.replace("__", "."): value for name, value in settings.items()}
    return fine_tune(base, data, given, name=name, resume=bool(given.pop("resume", False)), quiet=True)


def last_tensors(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.load(run / "checkpoints" / "last", ("model", "adapter", "ema", "optimizer"))
    return {f"{part} {name}": tensor for part, named in saved.tensors.items() for name, tensor in named.items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(tensor, two[name]) for name, tensor in one.items())


class StopAt(Hook):
    """Takes the place of the handler of Ctrl-C."""

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step == 4:
            trainer.stop("interrupted by a test")
