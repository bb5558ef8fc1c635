"""Test what differs on a Mac. The tests replace its device mps, since this machine has none."""

import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from minigpt.runtime import device
from minigpt.runtime.device import Runtime, measured_key
from minigpt.runtime.memory import host_memory
from minigpt.runtime.memory_estimate import Memory
from minigpt.training import accumulate, memory

MPS = Runtime(torch.device("mps"), "fp32")


class Sum(nn.Module):
    """A learner with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), device="meta"))

    def loss(self, tokens: Tensor, targets: Tensor, **more: Any) -> Tensor:
        return (self.weight * tokens).sum()


def test_only_cuda_may_copy_a_batch_later(monkeypatch: pytest.MonkeyPatch) -> None:
    queued, to = [], Tensor.to

    def copied(side: Tensor, *place: Any, **how: Any) -> Tensor:
        queued.append(how.get("non_blocking", False))
        return to(side, *place, **how)

    monkeypatch.setattr(Tensor, "to", copied)
    rows = torch.zeros(2, 5, dtype=torch.long)
    accumulate(cast(Any, Sum()), [(rows[:, :-1], rows[:, 1:])], runtime=Runtime(torch.device("meta"), "fp32"))
    assert queued and not any(queued)


def test_measurements_of_mps_and_of_the_cpu_are_kept_apart() -> None:
    assert measured_key(MPS, "prices") != measured_key(Runtime(torch.device("cpu"), "fp32"), "prices")


def test_the_speed_of_a_slow_gpu_is_measured_in_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, speed = [0.0], 2e12  # an M1 in fp32

    def multiply(left: Tensor, right: Tensor) -> None:
        clock[0] += 2 * len(left) ** 3 / speed

    monkeypatch.setattr(torch, "Generator", lambda where: SimpleNamespace(manual_seed=lambda seed: None))
    monkeypatch.setattr(torch, "randn", lambda *size, **more: torch.empty(*size, device="meta"))
    monkeypatch.setattr(torch, "mm", multiply)
    monkeypatch.setattr(torch.mps, "synchronize", lambda: None)
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    assert device.peak_flops.__wrapped__("mps", "fp32") == pytest.approx(speed)
    assert clock[0] < 1


def test_auto_leaves_memory_free_on_mps_which_would_swap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "try_pass", lambda *words: 1.0)
    run = SimpleNamespace(
        runtime=MPS, rows=4, make=lambda: None, batches=SimpleNamespace(batch=lambda step: None),
        needed=lambda size: Memory(30 * size, 0, 0, 0, 0),
    )  # fmt: skip
    assert memory.find(cast(Any, run), free=100) == 2


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="needs POSIX")
def test_what_is_free_is_read_from_vm_stat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
    said += "Pages free:     100.\nPages active:   900.\nPages inactive:  50.\nPages speculative:  7.\n"
    monkeypatch.setattr(subprocess, "run", lambda *words, **more: SimpleNamespace(stdout=said))
    total, free = host_memory(tmp_path)
    assert free == 157 * os.sysconf("SC_PAGE_SIZE") < total

    def missing(*words: Any, **more: Any) -> None:
        raise FileNotFoundError

    monkeypatch.setattr(subprocess, "run", missing)
    assert host_memory(tmp_path) == (total, total)
