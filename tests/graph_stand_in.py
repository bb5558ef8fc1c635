"""Test CUDA graphs on a machine without CUDA: a replay runs the recorded step again. On a GPU, real graphs are used."""

import copy

import pytest
import torch

from minigpt.generation.fast import cuda_graphs
from minigpt.generation.fast.cuda_graphs import Replay
from minigpt.model import GPT

CUDA = torch.cuda.is_available()


def stand_in(step) -> cuda_graphs.Recorded:
    """The same as `cuda_graphs.record` returns: a replay, and the tensor into which it writes."""
    out = step().clone()
    return lambda: out.copy_(step()), out


def replayed(plain: GPT, monkeypatch: pytest.MonkeyPatch) -> tuple[GPT, list[int]]:
    """A copy of the model that decodes by graphs, and a list that grows by one at each replay."""
    fast, replays, make = copy.deepcopy(plain), [], cuda_graphs.record

    def record(step) -> cuda_graphs.Recorded:
        replay, out = (make if CUDA else stand_in)(step)
        home = fast.embedding.weight.data_ptr()

        def again() -> None:
            assert fast.embedding.weight.data_ptr() == home, "the weights moved, but a graph reads their old address"
            replay()
            replays.append(1)

        return again, out

    monkeypatch.setattr(cuda_graphs, "record", record)
    monkeypatch.setattr(cuda_graphs, "SPAN", 8)
    fast.reader = Replay()
    return fast, replays
