"""Test with one process what several ranks do: what a step costs, how it seeds dropout, and what ends all of them."""

import traceback
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import CPU, SHAPE, CountingBatches, make_trainer

from minigpt.errors import DataError
from minigpt.files import read_lines
from minigpt.model import GPT
from minigpt.runs.train import check_alike
from minigpt.runtime.device import step_seed
from minigpt.runtime.ranks import Ranks
from minigpt.training import Hook, Trainer, accumulate
from minigpt.training.hooks.checkpoints import Checkpoints
from minigpt.training.hooks.samples import Samples


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


def test_a_rank_that_does_not_save_gathers_one_tensor_at_a_time(tmp_path: Path) -> None:
    trainer, ranks = make_trainer(max_steps=1), Second()
    trainer.run()
    trainer.runtime = replace(CPU, ranks=ranks)
    Checkpoints(tmp_path, 1, 1, {}).save(trainer)
    assert ranks.most <= 2 and not list(tmp_path.iterdir())


class Interrupted(Second):
    """The other rank gets a signal while this one stops for a reason of its own."""

    def largest(self, value: float) -> float:
        return 2.0 if value == 1.0 else value


class Patience(Hook):
    """Stops in the second step."""

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step == 2:
            trainer.stop("no better validation loss")


def test_all_ranks_are_interrupted_or_none() -> None:
    """Else some write a last sample, and wait for ranks that do not."""
    for ranks, reason, finished in (
        (Second(), "no better validation loss", True),
        (Interrupted(), "interrupted on another rank", False),
    ):
        trainer = make_trainer([Patience()], max_steps=10)
        trainer.runtime = replace(CPU, ranks=ranks)
        state = trainer.run()
        assert (state.step, state.stop_reason, state.finished) == (2, reason, finished)


def test_a_sample_that_all_ranks_gather_ends_the_run_if_memory_runs_out(tmp_path: Path) -> None:
    def write(trainer: Trainer) -> str:
        if trainer.state.step == 1:
            raise MemoryError("no memory")
        return "a text"

    samples = tmp_path / "samples.jsonl"
    make_trainer([Samples(samples, 1, "", write, lambda text: None)], max_steps=2).run()
    assert [line["step"] for line in read_lines(samples)] == [2]
    with pytest.raises(MemoryError):
        make_trainer([Samples(samples, 1, "", write, lambda text: None, gathers=True)], max_steps=2).run()


def test_a_host_with_another_text_is_refused() -> None:
    class Other(Second):
        def broadcast(self, make: object) -> dict[str, str]:
            return {"train": "1", "val": "2"}

        def __str__(self) -> str:
            return "rank 1 on b"

    check_alike(Other(), "a.txt", {"train": "1", "val": "2"})
    with pytest.raises(DataError, match=r"a\.txt: rank 1 on b has another text than rank 0"):
        check_alike(Other(), "a.txt", {"train": "1", "val": "3"})


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
