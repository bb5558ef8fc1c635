"""Train a tiny model on each rank, for test_parallel.py under torchrun; rank 0 compares it with one process.

torchrun --standalone --nproc-per-node 2 tests/parallel_run.py '{"steps": 5, "cases": [["ddp", "muon", {}], ...]}'
torchrun --standalone --nproc-per-node 2 tests/parallel_run.py '{"fail": "storage", "rank": 0}'

Prints a line of JSON for each case: how much losses, norms, validation losses and tensors differ from those of one
process, and how often the gradients were sent in a step. Or one rank fails in step 3, in one of several ways.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from minigpt.config import RunConfig
from minigpt.errors import MiniGPTError, StorageError
from minigpt.model import GPT
from minigpt.model.loss import IGNORE
from minigpt.runtime.device import make_runtime
from minigpt.runtime.parallel.wrap import Replicated
from minigpt.runtime.placement import joined, make_placement
from minigpt.runtime.ranks import ALONE, Ranks
from minigpt.training import Hook, Trainer, make_optimizer
from minigpt.training.hooks.average import Average

SCRIPT = str(Path(__file__))
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
BATCH, LENGTH = 8, 16
MODEL = {"vocab_size": 50, "embed_dim": 32, "num_heads": 4, "num_kv_heads": 2, "num_layers": 2, "max_seq_len": LENGTH}


class Uneven:
    """Random text whose rows have more and more targets: the first half of a batch has far fewer than the second."""

    steps_per_epoch, tokens_per_step = 1e9, BATCH * LENGTH

    def batch(self, step: int, rank: int = 0, world: int = 1) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(step)
        tokens = torch.randint(50, (BATCH, LENGTH + 1), generator=chance)
        tokens[:, 1::2] = (tokens[:, :-1:2] * 7 + 3) % 50  # every second token can be predicted
        counted = torch.rand(BATCH, LENGTH, generator=chance) < (torch.arange(BATCH) / BATCH)[:, None] ** 3
        inputs, targets = tokens[:, :-1], torch.where(counted, tokens[:, 1:], IGNORE)
        share = BATCH // world
        return inputs[rank * share :][:share], targets[rank * share :][:share]


class Seen(Hook):
    """Notes every step's loss and norm."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.checks: list[float] = []

    def on_step(self, trainer: Trainer) -> None:
        self.losses.append(trainer.loss.item())
        self.norms.append(trainer.grad_norm.item())
        if trainer.state.eval_step == trainer.state.step:
            self.checks.append(trainer.state.val_loss or 0.0)


def config_of(kind: str, optimizer: str, steps: int, more: dict[str, Any]) -> RunConfig:
    train = {"max_steps": steps, "batch_size": BATCH, "micro_batch_size": 2, "eval_every": 3, "precision": "fp32",
             "device": "cpu", "ema_decay": 0.9}  # fmt: skip
    return RunConfig.model_validate({
        "model": MODEL | more.get("model", {}),
        "optimizer": {"kind": optimizer, "learning_rate": 3e-3 if optimizer == "adamw" else 0.02, "adamw_ratio": 0.15},
        "schedule": {"warmup_steps": 2},
        "train": train | more.get("train", {}),
        "parallel": {"kind": kind} | more.get("parallel", {}),
    })  # fmt: skip


class Failing(Hook):
    """Makes one rank fail in step 3."""

    def __init__(self, how: str, rank: int):
        self.how, self.rank = how, rank

    def on_step(self, trainer: Trainer) -> None:
        if trainer.state.step != 3 or trainer.runtime.ranks.rank != self.rank:
            return
        print(f"failing at {time.time()}", flush=True)
        if self.how == "storage":
            raise StorageError("runs/x: the disk is full")
        if self.how == "bug":
            raise KeyError("a bug")
        os.kill(os.getpid(), signal.SIGKILL if self.how == "kill" else signal.SIGSTOP)


def run(config: RunConfig, ranks: Ranks, *hooks: Hook) -> tuple[Seen, dict[str, Tensor], float]:
    """The recorded steps, the whole weights at the end, and how often gradients were sent in a step."""
    runtime = replace(make_runtime("cpu", "fp32"), ranks=ranks)
    placement = make_placement(config, ranks)
    model, view = placement.place(GPT(config.model, seed=1), runtime)

    def validation() -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(3):  # an odd number, so some ranks have no last batch
            inputs, targets = Uneven().batch(1000 + step)
            yield inputs[4:], targets[4:]

    seen = Seen()
    trainer = Trainer(
        model,
        make_optimizer(model, config.optimizer, "fp32", ranks),
        Uneven(),
        validation,
        config.train,
        config.schedule,
        runtime,
        config.optimizer.learning_rate,
        [Average(model, config.train.ema_decay), seen, *hooks],
        placement.learner(model, view),
        placement.evaluated(model, view),
    )
    sent = 0
    if isinstance(trainer.learner, Replicated):

        def counting(group, bucket):  # without annotations, since torch checks them
            nonlocal sent
            sent += 1
            return allreduce_hook(group, bucket)

        trainer.learner.ddp.register_comm_hook(None, counting)
    scatter = next(name for name in ("reduce_scatter_single", "reduce_scatter_tensor") if hasattr(dist, name))  # FSDP's
    with mock.patch.object(dist, scatter, wraps=getattr(dist, scatter)) as calls:
        trainer.run()
    sent += calls.call_count
    weights = {
        f"{part} {name}": ranks.whole(tensor)
        for part, named in trainer.tensors().items()
        for name, tensor in named.items()
    }
    return seen, weights, sent / config.train.max_steps


def gap(one: list[float], two: list[float]) -> float:
    assert len(one) == len(two)
    return max(abs(a - b) for a, b in zip(one, two, strict=True))


def compare(kind: str, optimizer: str, more: dict[str, Any], steps: int, ranks: Ranks) -> dict[str, Any]:
    config = config_of(kind, optimizer, steps, more)
    seen, weights, sent = run(config, ranks)
    alone, expected, _ = ranks.broadcast(lambda: run(config, ALONE))
    assert weights.keys() == expected.keys()
    return {
        "case": f"{kind} {optimizer} {more or ''}",
        "ranks": ranks.world,
        "losses": gap(seen.losses, alone.losses),
        "norms": gap(seen.norms, alone.norms),
        "validation": gap(seen.checks, alone.checks),
        "tensors": max((weights[name] - tensor).abs().max().item() for name, tensor in expected.items()),
        "learned": alone.losses[0] - alone.losses[-1],
        "sent": sent,
    }


def launch(count: int, *argv: str, folder: Path | None = None, timeout: float = 300) -> subprocess.CompletedProcess:
    """Run `torchrun argv` with `count` ranks on this host."""
    command = [*TORCHRUN, "--nproc-per-node", str(count), *argv]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=timeout, check=False)


def check_order(ranks: Ranks) -> None:
    """`share` returns rank 0's value; `in_turn` lets rank 0 finish before another begins."""
    assert ranks.broadcast(lambda: ranks.rank) == 0
    mark = Path(os.environ["TORCHELASTIC_RUN_ID"] + ".mark")

    def make() -> bool:
        there = mark.exists()
        time.sleep(0.2 if ranks.rank == 0 else 0.0)
        mark.touch()
        return there

    assert ranks.in_turn(make) == (ranks.rank > 0)


def main() -> int:
    asked = json.loads(sys.argv[1])
    if how := asked.get("fail"):
        config = config_of("fsdp", "muon", 1000, {"parallel": {"timeout_seconds": asked.get("timeout", 600)}})
        try:
            with joined(config) as (placement, _):
                run(config, placement.ranks, Failing(how, asked["rank"]))
        except MiniGPTError as error:
            print(f"minigpt: {error}", file=sys.stderr)
            return error.exit_code
    with joined(config_of("ddp", "adamw", 1, {})) as (placement, _):
        ranks = placement.ranks
        check_order(ranks)
        for kind, optimizer, more in asked["cases"]:
            result = compare(kind, optimizer, more, asked["steps"], ranks)
            if ranks.rank == 0:
                print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
