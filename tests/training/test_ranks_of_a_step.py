"""Test what a step costs on several ranks, and how a step seeds dropout, with one process."""

import traceback
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import CPU, SHAPE, CountingBatches, make_trainer

from minigpt.model import GPT
from minigpt.runtime.device import step_seed
from minigpt.runtime.ranks import Ranks
from minigpt.training import Hook, Trainer, accumulate
from minigpt.training.hooks.checkpoints import Checkpoints


class Second(Ranks):
    """The second of two ranks, without the first. Counts its questions, and the whole tensors in memory."""

    rank, world = 1, 2

    def __init__(self) -> None:
        self.questions = self.alive = self.most = 0

    def largest(self, value: float) -> float:
        self.questions += 1
        return value

    def whole(self, tensor: torch.Tensor) -> torch.Tensor:
        whole = tensor.clone()
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(whole, self.drop)
        return whole

    def drop(self) -> None:
        self.alive -= 1


def test_the_ranks_ask_each_other_twice_a_step() -> None:
    trainer, ranks = make_trainer(max_steps=10, eval_every=100), Second()
    trainer.runtime = replace(CPU, ranks=ranks)
    trainer.run()
    assert trainer.state.step == 10
    assert ranks.questions <= 2 * 10 + 1  # the time after each step, and whether to stop before each step and the end


class Signalled(Hook):
    """A signal reaches this rank after the step in which all ranks stop."""

    def on_step(self, trainer: Trainer) -> None:
        trainer.stop("interrupted by SIGTERM")


@pytest.mark.parametrize(("reason", "finished"), [("no better loss", True), ("interrupted on another rank", False)])
def test_all_ranks_end_for_the_reason_of_the_first(reason: str, finished: bool) -> None:
    class OfTheFirst(Second):
        def broadcast(self, make: Callable[[], Any]) -> Any:
            return reason

    trainer = make_trainer(hooks=[Signalled()], max_steps=10)
    trainer.runtime = replace(CPU, ranks=OfTheFirst())
    state = trainer.run()
    assert (state.step, state.stop_reason, state.finished) == (1, reason, finished)


def test_a_rank_that_does_not_save_gathers_one_tensor_at_a_time(tmp_path: Path) -> None:
    trainer, ranks = make_trainer(max_steps=1), Second()
    trainer.run()
    trainer.runtime = replace(CPU, ranks=ranks)
    Checkpoints(tmp_path, 1, 1, {}).save(trainer)
    assert ranks.most <= 2 and not list(tmp_path.iterdir())


def test_seeding_on_a_cpu_is_torchs_and_writes_down_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(7)
    expected = torch.rand(5)
    monkeypatch.setattr(traceback, "format_stack", lambda: pytest.fail("this takes as long as a small step"))
    CPU.seed(7)
    assert torch.equal(torch.rand(5), expected)
    accumulate(GPT(SHAPE), [CountingBatches().batch(0)], runtime=CPU)


def test_seeds_of_steps_differ_and_depend_on_every_part() -> None:
    seeds = {step_seed(s, k, r, m) for s in range(3) for k in range(50) for r in range(3) for m in range(3)}
    assert len(seeds) == 3 * 50 * 9
    assert all(0 <= seed < 2**63 for seed in seeds)
