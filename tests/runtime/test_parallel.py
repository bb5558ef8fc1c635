"""Test that several ranks train as one process does, and that all end together when one fails."""

import json
import socket
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from mostly_slow import mostly_slow
from parallel_run import MODEL, SCRIPT, launch

from minigpt.cli import main
from minigpt.config import ModelConfig, RunConfig, load_config
from minigpt.errors import ConfigError, ParallelError, StorageError
from minigpt.model import GPT
from minigpt.runtime.device import evaluating
from minigpt.runtime.parallel.group import join
from minigpt.runtime.parallel.wrap import Recomputed, Sharded, with_blocks
from minigpt.runtime.placement import joined, make_placement
from minigpt.runtime.ranks import ALONE, Ranks

BASE = {"train": {"device": "cpu"}}


def compare(count: int, steps: int, cases: list[list[Any]], folder: Path) -> list[dict[str, Any]]:
    """`parallel_run.compare` for each case with `count` ranks."""
    done = launch(count, SCRIPT, json.dumps({"steps": steps, "cases": cases}), folder=folder)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(results) == len(cases)
    return results


def check(results: list[dict[str, Any]], tolerance: float = 1e-5) -> None:
    for result in results:
        print(json.dumps(result))
        for what in ("losses", "norms", "validation"):
            assert result[what] < tolerance, result


@pytest.mark.slow
def test_two_ranks_train_as_one_does_and_send_gradients_once_a_step(tmp_path: Path) -> None:
    cases = [["ddp", "adamw", {}], ["fsdp", "normuon", {"parallel": {"activation_checkpointing": True}}]]
    results = compare(2, 4, cases, tmp_path)
    check(results)
    assert all(result["tensors"] < 1e-5 for result in results), "weights, their average, and the optimizer's state"
    # 4 rows per rank are 2 micro-batches: DDP has one bucket, FSDP one group for each block and one for the rest
    assert [result["sent"] for result in results] == [1.0, 3.0]


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4])
def test_fifty_steps_lose_what_one_process_loses(count: int, tmp_path: Path) -> None:
    rounds = {"train": {"micro_batch_size": 1}}
    cases = [[kind, optimizer, rounds] for kind in ("ddp", "fsdp") for optimizer in ("adamw", "muon")]
    results = compare(count, 50, cases, tmp_path)
    check(results)
    assert all(result["learned"] > 0.3 for result in results)
    assert [result["sent"] for result in results] == [1.0, 1.0, 3.0, 3.0]


def test_a_recomputed_block_gives_the_same_gradients_with_dropout() -> None:
    config = ModelConfig.model_validate(
        MODEL | {"dropout": 0.3, "qkv_dropout": 0.2, "hidden_dropout": 0.2, "locked_dropout": ("block", "hidden")}
    )
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    gradients, kept = [], []
    for again in (False, True):
        model = GPT(config, seed=1).train()
        view = with_blocks(model, Recomputed) if again else model
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        torch.manual_seed(3)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = view.loss(tokens, tokens, valid=32)
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        kept.append(sum(sizes))
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])
    assert kept[1] < kept[0] / 3, "fewer numbers are kept for the backward pass"
    with torch.no_grad():
        view.eval()(tokens)  # a pass without gradients is not recomputed


def test_a_sharded_model_is_evaluated_without_dropout() -> None:
    model = GPT(ModelConfig.model_validate(MODEL | {"dropout": 0.5}), seed=1)
    view = with_blocks(model, Recomputed)
    view.reshard = lambda: None  # the only method of FSDP that is called here
    tokens = torch.randint(50, (2, 16), generator=torch.Generator().manual_seed(0))
    learner = Sharded(model, view)
    with torch.no_grad(), evaluating(model):
        expected = model.loss(tokens, tokens, valid=32)
        assert [learner.loss(tokens, tokens, valid=32).item() for _ in range(3)] == [expected.item()] * 3
    with torch.no_grad():
        assert learner.loss(tokens, tokens, valid=32) != expected, "a training step uses dropout again"


def test_validation_rows_are_the_same_whatever_the_number_of_ranks() -> None:
    def sizes(world: int, **train: int) -> tuple[int, int | None]:
        ranks = Ranks()
        ranks.world = world
        config = RunConfig.model_validate({"train": train})
        return make_placement(config, ranks).eval_size(config.train)

    assert sizes(1, batch_size=12, eval_batches=2) == (12, 2)
    assert sizes(4, batch_size=12, eval_batches=2) == (3, 8)
    assert sizes(4, batch_size=12, micro_batch_size=4, eval_batches=2) == (1, 8)
    assert sizes(2, batch_size=12, micro_batch_size=3, eval_batches=5) == (3, 5)
    assert sizes(2, batch_size=12)[1] is None


def test_a_rank_that_writes_no_sample_makes_no_whole_model() -> None:
    class Second(Ranks):
        rank, world, gathered = 1, 2, 0

        def whole(self, tensor: torch.Tensor) -> torch.Tensor:
            self.gathered += 1
            return tensor

    ranks = Second()
    placement = make_placement(RunConfig.model_validate({"parallel": {"kind": "fsdp"}}), ranks)
    shape = ModelConfig(vocab_size=50, embed_dim=16, num_heads=2, num_layers=1, max_seq_len=16, attention="sdpa")
    model = GPT(shape)
    assert placement.whole(model, needed=False) is model
    assert ranks.gathered == len(model.weights()), "it takes part, since the first rank needs its parts"
    assert placement.whole(model) is not model


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> tuple[str, int]:
    """Set the environment that torchrun gives; returns the address of the store."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"RANK": rank, "WORLD_SIZE": world, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port}.items():  # fmt: skip
        monkeypatch.setenv(name, str(value))
    return "127.0.0.1", port


def test_settings_that_do_not_fit_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def error(given: dict[str, Any], **options: Any) -> str:
        with pytest.raises(ConfigError) as caught, joined(RunConfig.model_validate(given), **options):
            raise AssertionError("it must not start")
        return str(caught.value)

    as_rank(monkeypatch, 0, 4)
    assert "30 is not a multiple of the 4 ranks; 28 or 32 is" in error({"train": {"batch_size": 30}})
    assert "2 is not a multiple of the 4 ranks; 4 is" in error({"train": {"batch_size": 2}})
    assert "cuda:1 is one device for all ranks" in error({"train": {"device": "cuda:1"}})
    assert "fine-tuning runs with ddp" in error({"parallel": {"kind": "fsdp"}}, divisible=False)
    assert "leave torchrun out" in error({"finetune": {"dpo_beta": 0.1}})
    with pytest.raises(ConfigError, match=r"cpu_offload needs kind fsdp; set --parallel\.kind fsdp"):
        load_config(None, {"parallel.cpu_offload": True})


def test_one_process_joins_no_group_and_fsdp_says_it_does_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for world in ("", "1"):
        monkeypatch.setenv("WORLD_SIZE", world)
        with joined(RunConfig.model_validate({"parallel": {"kind": "fsdp"}})) as (placement, _):
            assert placement.ranks is ALONE
        assert "no effect" in capsys.readouterr().err


def test_a_world_without_a_rank_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ParallelError, match="RANK is not; start with torchrun"), joined(RunConfig()):
        raise AssertionError("it must not start")


def test_a_rank_that_does_not_start_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = as_rank(monkeypatch, 0, 3)
    words = r"ranks 1, 2 did not start in 1 s; .*GLOO_SOCKET_IFNAME"
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    _kept_by_torchrun = dist.TCPStore(host, port, is_master=True, wait_for_workers=False)
    with pytest.raises(ParallelError, match=words), join(torch.device("cpu"), 1):
        raise AssertionError("it must not start")


def test_an_error_that_rank_0_does_not_have_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(time, "sleep", waited.append)
    as_rank(monkeypatch, 1, 2)
    assert main(["no-such-command"]) == 2
    assert waited == [30]
    assert "no such command: no-such-command" in capsys.readouterr().err


def test_a_restart_and_a_second_training_do_not_see_an_earlier_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = as_rank(monkeypatch, 0, 1)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    _kept_by_torchrun = dist.TCPStore(host, port, is_master=True, wait_for_workers=False)
    for attempt in ("0", "0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", attempt)
        with pytest.raises(StorageError), join(torch.device("cpu"), 9):  # SystemExit, if another had failed before
            raise StorageError("the disk is full")


@pytest.mark.parametrize("rank", mostly_slow([1, 0]))
def test_a_meeting_point_where_nobody_is_is_named(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = as_rank(monkeypatch, rank, 2)
    with pytest.raises(ParallelError, match=rf"do not meet at {host}:{port}"), join(torch.device("cpu"), 1):
        raise AssertionError("it must not start")


def test_a_host_that_answers_the_store_but_not_the_network_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = as_rank(monkeypatch, 0, 2)

    def other() -> None:  # this rank reaches only the store
        store = dist.TCPStore(host, port, 2, is_master=False, timeout=timedelta(seconds=20))
        store.set("minigpt/0.1/host/1", "far-away")

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(ParallelError, match="rank 1 on far-away over the network"), join(torch.device("cpu"), 2):
        raise AssertionError("it must not start")
    thread.join()
    assert not dist.is_initialized()
