"""Connect the processes that torchrun starts, sum their tensors, and end all of them together.

A wait without a time limit (rank 0 may prepare a text for hours) uses torchrun's store, since a collective would time
out. The store also says that a rank has failed. The first rank that fails reports its error. A thread in every other
rank then ends that process within seconds, even if it hangs in a collective.
"""

import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.fsdp import FSDPModule
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor, distribute_tensor

from minigpt import torchrun
from minigpt.errors import MiniGPTError, ParallelError, first_line
from minigpt.runtime.parallel.wrap import Replicated, Sharded
from minigpt.runtime.ranks import Made, Ranks

POLL = 0.05
"""Seconds between two reads of the store."""
GRACE = 3.0
"""Seconds that a rank has to end by itself after another has failed."""
CHECK_IN = 120.0
"""Seconds after which every rank must have started."""
HINT = (
    "check that it runs, that no firewall is between the hosts, and which network they share: "
    "GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME name its interface (ip addr)"
)


@contextmanager
def join(device: torch.device, timeout: float) -> Iterator["Processes"]:
    """Connect the ranks inside the `with` block. All leave it together, or end soon after the first rank that failed.

    Args:
        device: the device of this process.
        timeout: time limit of a collective, in seconds.

    Raises:
        ParallelError: a rank does not answer, at the start or later.
        SystemExit: another rank has failed and has reported its error; this one prints nothing.
    """
    ranks = Processes(device, timedelta(seconds=timeout))
    try:
        ranks.connect()
        yield ranks
        ranks.barrier()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  the other ranks must end after any error
        raise ranks.fail(error) from error.__cause__
    finally:
        ranks.leave()


class Processes(Ranks):
    """This process and the others that torchrun started. `join` makes it."""

    def __init__(self, device: torch.device, timeout: timedelta):
        self.device, self.timeout, self.on_gpu = device, timeout, device.type == "cuda"
        self.rank, self.world = torchrun.rank(), torchrun.world()
        self.local = int(os.environ.get("LOCAL_RANK", self.rank))
        self.hosts = [socket.gethostname()] * self.world
        self.store: Store | None = None
        self.gloo: dist.ProcessGroup | None = None  # for numbers on the CPU, also if the model is on a GPU
        self._watcher: threading.Thread | None = None
        self._barriers = 0
        self._left = threading.Event()

    def connect(self) -> None:
        """Find the other ranks and test the network between all of them. Raises ParallelError naming missing ranks."""
        wait = min(self.timeout, timedelta(seconds=CHECK_IN))
        try:
            store, *_ = next(rendezvous("env://", timeout=wait))
        except (dist.DistError, ValueError) as error:
            address = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            raise ParallelError(f"{self}: the ranks do not meet at {address} ({_reason(error)}); {HINT}") from None
        self.store = PrefixStore(f"minigpt/{self._turn(store)}", store)
        self._check_in(wait)
        self._watcher = threading.Thread(target=self._watch, args=(cast(Any, self.store).clone(),), daemon=True)
        self._watcher.start()
        backend = "cpu:gloo,cuda:nccl" if self.on_gpu else "gloo"
        if self.on_gpu:
            torch.cuda.set_device(self.device)
        us: dict[str, Any] = {"rank": self.rank, "world_size": self.world}
        try:
            late = timedelta(seconds=GRACE if self.rank else 0)  # rank 0 names the missing ranks, so it fails first
            dist.init_process_group("gloo", store=PrefixStore("trial", self.store), timeout=wait + late, **us)
            dist.monitored_barrier(timeout=wait + late, wait_all_ranks=True)
            dist.destroy_process_group()
            dist.init_process_group(backend, store=self.store, timeout=self.timeout, **us)
            self.gloo = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=self.timeout))
            answers = int(self.total(torch.ones(1, device=self.device)))
        except RuntimeError as error:
            silent = [int(n) for n in re.findall(r"\d+", str(error).partition("Ranks ")[2].partition(" failed")[0])]
            raise self._silent(silent, _reason(error)) from None
        if answers != self.world:
            raise ParallelError(f"{self}: an all-reduce of {self.world} ones gave {answers}; {HINT}")

    def _turn(self, store: Store) -> str:
        """A name for this connection. The store may still hold an attempt before a restart, or an earlier training.
        Several hosts count their restarts apart, so there all attempts have one name.
        """
        if int(os.environ.get("GROUP_WORLD_SIZE") or 1) > 1:
            return "0"
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return f"{attempt}.{store.add(f'minigpt/{attempt}/{self.rank}', 1)}"

    def _check_in(self, wait: timedelta) -> None:
        """Write this rank's host into the store, and read the hosts of the others."""
        assert self.store is not None
        names = [f"host/{rank}" for rank in range(self.world)]
        self.store.set(names[self.rank], self.hosts[self.rank])
        deadline = time.monotonic() + wait.total_seconds()
        while missing := [rank for rank, name in enumerate(names) if not self.store.check([name])]:
            if time.monotonic() > deadline:
                raise ParallelError(f"{self}: {_listed(missing)} did not start in {wait.total_seconds():g} s; {HINT}")
            time.sleep(POLL)
        self.hosts = [self.store.get(name).decode() for name in names]
        self.here = self.hosts.count(self.hosts[self.rank])

    def _silent(self, ranks: list[int], reason: str) -> ParallelError:
        """The error for a failed network: names the ranks that do not answer, or all others if that is not known."""
        named = ranks or [rank for rank in range(self.world) if rank != self.rank]
        who = " and ".join(f"{_listed([r for r in named if self.hosts[r] == host])} on {host}"
                           for host in dict.fromkeys(self.hosts[rank] for rank in named))  # fmt: skip
        doubt = "not " if ranks else "not all of "
        return ParallelError(f"{self} reaches the store, but {doubt}{who} over the network ({reason}); {HINT}")

    def _watch(self, store: Store) -> None:
        """Run in a thread: after another rank has failed, end this process if it does not end by itself."""
        try:
            while not self._left.wait(POLL * 4):
                if store.check(["code"]):
                    if not self._left.wait(GRACE):
                        code = int(store.get("code"))
                        sys.stdout.flush()
                        if sys.stderr.isatty():
                            sys.stderr.write("\x1b[?25h")  # show the cursor, which a live line hides
                        os._exit(code)
                    return
        except dist.DistError:  # the store's host is gone; the next collective fails too
            return

    def fail(self, error: BaseException) -> BaseException:
        """The exception to raise for an error: the error itself on the first rank that fails, SystemExit on others."""
        code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
        try:
            if self.store is not None and self.store.add("failed", 1) > 1:
                time.sleep(GRACE)  # torchrun ends all ranks once one ends; let the first report
                return SystemExit(int(self.store.get("code")))
            if self.store is not None:
                self.store.set("code", str(code))
        except dist.DistError as gone:  # the store's host is gone, so each rank reports its own error
            error.add_note(f"torchrun's store is gone: {gone}")
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            error = ParallelError(
                f"{self} lost another rank, or waited {self.timeout.total_seconds():g} s for it ({_reason(error)}); if "
                "it was only slow, set --parallel.timeout-seconds higher; the same command continues from the last "
                "checkpoint"
            )
        if isinstance(error, MiniGPTError):
            error.alone = True
        return error

    def leave(self) -> None:
        """Close the connections."""
        self._left.set()
        if self._watcher:
            self._watcher.join()
        failed = sys.exc_info()[0] is not None
        if dist.is_initialized() and not (failed and self.on_gpu):  # NCCL would wait for the other ranks
            dist.destroy_process_group()

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.hosts[self.rank]}"

    def barrier(self) -> None:
        """Wait, without a time limit, until every rank has called this."""
        assert self.store is not None
        self._barriers += 1
        name = f"barrier/{self._barriers}"
        self.store.add(name, 1)
        while self.store.add(name, 0) < self.world:
            time.sleep(POLL)

    def broadcast(self, make: Callable[[], Made]) -> Made:
        """Call `make` on rank 0, and return its result on every rank. The others wait without a time limit."""
        made: list[Any] = [make() if self.rank == 0 else None]
        self.barrier()
        dist.broadcast_object_list(made, src=0, group=self.gloo)
        return made[0]

    def in_turn(self, make: Callable[[], Made]) -> Made:
        """Call `make` on rank 0, then on the first rank of each other host, then on the rest. Return its own result."""
        mine = 0 if self.rank == 0 else 1 if self.local == 0 else 2
        made: list[Made] = []
        for turn in range(3):
            if turn == mine:
                made.append(make())
            self.barrier()
        return made[0]

    def total(self, value: Tensor) -> Tensor:
        """Sum a tensor over the ranks."""
        value = value.detach().clone()
        dist.all_reduce(value)
        return value

    def largest(self, value: float) -> float:
        """The largest of the ranks' values."""
        largest = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(largest, dist.ReduceOp.MAX, group=self.gloo)
        return largest.item()

    def sync_gradients(self, model: object, now: bool) -> AbstractContextManager[object]:
        """Use around a backward pass: the ranks sum their gradients if `now`, else they keep accumulating."""
        if isinstance(model, Replicated):
            return nullcontext() if now else model.ddp.no_sync()
        if isinstance(model, Sharded):
            cast(FSDPModule, model.view).set_requires_gradient_sync(now)
        return nullcontext()

    def whole(self, tensor: Tensor) -> Tensor:
        """The whole tensor, if each rank holds only a part of it. Every rank must call this."""
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    def own(self, tensor: Tensor, like: Tensor) -> Tensor:
        """This rank's part of a whole tensor, split in the same way as `like`."""
        if not isinstance(like, DTensor):
            return tensor
        part = distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
        return part.to(like.device)


def _reason(error: Exception) -> str:
    """First sentence of an error: _reason(RuntimeError("[/a/b.cc:5] Closed by peer. See ...")) -> "Closed by peer"."""
    return re.sub(r"^\[\S+\] ", "", first_line(error)).split(". ")[0].rstrip(".")


def _listed(ranks: list[int]) -> str:
    """_listed([1, 2]) -> "ranks 1, 2"."""
    return f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
