"""Test the schedule of the weight decay: its values, that both optimizers use it, and that a run resumes exactly."""

from pathlib import Path
from typing import Any

import pytest
import torch

from minigpt.config import ModelConfig, OptimizerConfig, ScheduleConfig, TrainConfig, load_config
from minigpt.errors import ConfigError
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.training import Hook, Trainer, make_optimizer
from minigpt.training.schedule import DECAYS, SCHEDULES, decay_factor, lr_factor
from minigpt.weights import checkpoint
from minigpt.weights.damage import PARTS

CPU = Runtime(torch.device("cpu"), "fp32")
SHAPE = ModelConfig(vocab_size=20, embed_dim=32, num_heads=2, num_layers=1, max_seq_len=8, dropout=0.1)


class Rows:
    """Random rows, a pure function of the step."""

    steps_per_epoch, tokens_per_step = 10.0, 32

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(20, (4, 9), generator=torch.Generator().manual_seed(step))
        return rows[:, :-1], rows[:, 1:]


class Watch(Hook):
    """Notes the decay that each step took, and stops after one of them."""

    def __init__(self, stop_at: int = 0):
        self.decays: list[list[float]] = []
        self.stop_at = stop_at

    def on_step(self, trainer: Trainer) -> None:
        self.decays.append([group["weight_decay"] for group in trainer.optimizer.param_groups])
        if trainer.state.step == self.stop_at:
            trainer.stop("interrupted by a test")


def trainer(decay: Any, hook: Hook, kind: Any = "muon") -> Trainer:
    model = GPT(SHAPE, seed=1)
    optimizer = OptimizerConfig(kind=kind, learning_rate=0.02, weight_decay=0.5)
    return Trainer(
        model,
        make_optimizer(model, optimizer, "fp32"),
        Rows(),
        lambda: [Rows().batch(1000)],
        TrainConfig(max_steps=6, batch_size=4),
        ScheduleConfig(kind="linear", warmup_steps=2, min_lr_ratio=0.2, weight_decay=decay),
        CPU,
        optimizer.learning_rate,
        [hook],
    )


RATES = [0.5, 1.0, 1.0, 0.8, 0.6, 0.4]
"""Two steps of warm-up, then a line from 1 at step 2 to 0.2 at step 6, which no longer trains."""
EXPECTED = {"constant": [1.0] * 6, "follow": RATES, "opposite": [0.7, 0.2, 0.2, 0.4, 0.6, 0.8]}


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("decay", DECAYS)
def test_each_step_decays_by_its_share(decay: str, kind: str) -> None:
    watch = Watch()
    run = trainer(decay, watch, kind)
    peaks = [group["weight_decay"] for group in run.optimizer.param_groups]
    run.run()
    assert peaks == ([0.5, 0.5, 0.0] if kind == "muon" else [0.5, 0.0]), "norms have no decay"
    for shares, taken in zip(EXPECTED[decay], watch.decays, strict=True):
        assert taken == pytest.approx([peak * shares for peak in peaks])


def test_the_decay_reaches_the_weights_of_both_optimizers() -> None:
    ends = {}
    for decay in DECAYS:
        run = trainer(decay, Watch())
        run.run()
        ends[decay] = run.model.blocks[0].attention.out.weight.norm(), run.model.embedding.weight.norm()  # type: ignore[union-attr]
    for at in (0, 1):
        assert ends["constant"][at] < ends["follow"][at] < ends["opposite"][at], (
            "more decay at a high rate gives smaller weights"
        )


def test_opposite_is_whole_in_the_first_step_of_a_long_warm_up() -> None:
    config = ScheduleConfig(weight_decay="opposite", min_lr_ratio=0.1)
    assert [decay_factor(rate, config) for rate in (0.0, 0.1, 0.55, 1.0)] == pytest.approx([1.0, 1.0, 0.55, 0.1])


@pytest.mark.parametrize("kind", SCHEDULES)
def test_opposite_is_whole_where_the_rate_ends(kind: str) -> None:
    config = ScheduleConfig(kind=kind, weight_decay="opposite", min_lr_ratio=0.1)  # type: ignore[arg-type]
    assert decay_factor(lr_factor(1000, 1.0, config), config) == pytest.approx(1.0)


@pytest.mark.parametrize("stop_at", [1, 4])
def test_a_resumed_run_ends_with_the_same_bits(stop_at: int, tmp_path: Path) -> None:
    whole, first, second = (trainer("opposite", Watch(step)) for step in (0, stop_at, 0))
    whole.run()
    first.run()
    second.resume(
        checkpoint.load(checkpoint.save(tmp_path / "step-00000001", first.tensors(), first.checkpoint_state()), PARTS)
    )
    second.run()
    for part, named in whole.tensors().items():
        assert all(torch.equal(tensor, second.tensors()[part][name]) for name, tensor in named.items()), part


def test_an_unknown_name_is_told_with_the_choices() -> None:
    with pytest.raises(ConfigError, match=r"schedule\.weight_decay.*opposite"):
        load_config(None, {"schedule.weight_decay": "oposite"})
