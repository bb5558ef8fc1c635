"""Test two hosts (network namespaces joined by a veth pair): the cable is cut, a host is killed, the run continues.

torchrun restarts the remaining processes, and `minigpt train` continues from the last checkpoint with fewer ranks and
the same data order. So the losses stay those of one process without interruption.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

STEPS, SAVE_EVERY = 1500, 50
# The rate is small, because the order of sums changes with the ranks and must make only a small difference.
FLAGS = (
    "--data.stories-count 60 --model.embed-dim 32 --model.num-heads 2 --model.num-layers 2 --model.max-seq-len 32 "
    f"--train.batch-size 8 --train.max-steps {STEPS} --train.eval-every 500 --train.save-every {SAVE_EVERY} "
    "--train.sample-every 0 --train.device cpu --train.precision fp32 --train.compile off --model.attention sdpa "
    "--optimizer.kind adamw --optimizer.learning-rate 1e-3 --logging.plots false --logging.log-every 1 "
    "--parallel.timeout-seconds 8"
).split()
HOSTS = ("10.77.0.1", "10.77.0.2")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Hosts:
    """Two hosts; host 0 is the endpoint where they meet."""

    def __init__(self, folder: Path):
        self.folder, self.agents = folder, {}
        self.names = [f"minigpt-{os.getpid()}-{host}" for host in range(2)]
        self.cables = [f"v{os.getpid() % 10**6}-{host}" for host in range(2)]

    def build(self) -> None:
        for name in self.names:
            ip("netns", "add", name)
        ip("link", "add", self.cables[0], "type", "veth", "peer", "name", self.cables[1])
        for name, cable, address in zip(self.names, self.cables, HOSTS, strict=True):
            ip("link", "set", cable, "netns", name)
            ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            ip("-n", name, "link", "set", "lo", "up")
            ip("-n", name, "link", "set", cable, "up")

    def cable(self, state: str) -> None:
        ip("-n", self.names[1], "link", "set", self.cables[1], state)

    def start(self, host: int) -> None:
        """Run the documented command, as a scheduler does on each host."""
        meeting = f"is_host={host == 0},join_timeout=90,last_call_timeout=3,timeout=20,close_timeout=5"
        argv = ["ip", "netns", "exec", self.names[host], sys.executable, "-m", "torch.distributed.run"]
        argv += ["--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=5", "--rdzv-backend=c10d", "--rdzv-id=run"]
        argv += [f"--rdzv-endpoint={HOSTS[0]}:29411", f"--local-addr={HOSTS[host]}", f"--rdzv-conf={meeting}"]
        argv += ["-m", "minigpt", "train", "stories", "--name", "elastic", *FLAGS]
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": self.cables[host], "OMP_NUM_THREADS": "1"}
        environment["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # else a host cannot join again: docs/parallel.md
        with (self.folder / f"host-{host}.log").open("ab") as log:
            self.agents[host] = subprocess.Popen(
                argv, cwd=self.folder, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self, host: int) -> None:
        """Simulate a power cut: kill all processes of the host, in every session."""
        inside = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True, check=False)
        for process in inside.stdout.split():
            os.kill(int(process), signal.SIGKILL)
        self.agents[host].wait(30)

    def remove(self) -> None:
        for host, name in enumerate(self.names):
            if host in self.agents:
                self.kill(host)
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)

    def log(self, host: int) -> str:
        return (self.folder / f"host-{host}.log").read_text(errors="replace")


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    made = Hosts(tmp_path)
    try:
        made.build()
    except (OSError, subprocess.CalledProcessError) as error:
        made.remove()
        pytest.skip(f"network namespaces cannot be made here: {getattr(error, 'stderr', '') or error}")
    yield made
    made.remove()


def steps(folder: Path) -> list[int]:
    file = folder / "runs/elastic/metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line)["step"] for line in lines if line.endswith("}")]


def wait(until: Callable[[], bool], what: str, hosts: Hosts, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not until():
        assert time.monotonic() < end, f"{what}: not in {seconds} s\n{hosts.log(0)[-3000:]}\n{hosts.log(1)[-3000:]}"
        time.sleep(0.2)


@pytest.mark.slow
def test_a_cut_cable_or_killed_host_costs_only_unsaved_steps(tmp_path: Path, hosts: Hosts) -> None:
    def reach(step: int, what: str) -> None:
        wait(lambda: bool(found := steps(tmp_path)) and found[-1] >= step, what, hosts)

    def worlds(host: int) -> int:
        return hosts.log(host).count("2 ranks")

    hosts.start(0)
    hosts.start(1)
    reach(200, "both hosts train")
    assert worlds(0) == 1
    hosts.cable("down")
    before = steps(tmp_path)[-1]
    reach(before + 200, "host 0 continues alone")
    kept = [before]
    hosts.kill(1)  # host 1 is cut off, so it does not end by itself
    hosts.cable("up")
    hosts.start(1)
    wait(lambda: worlds(0) == 2, "host 1 joins again", hosts)
    reach(steps(tmp_path)[-1] + 100, "both hosts train again")
    kept.append(steps(tmp_path)[-1])
    hosts.kill(1)
    assert hosts.agents[0].wait(240) == 0, hosts.log(0)[-3000:]
    found = steps(tmp_path)
    assert found == list(range(STEPS + 1)), "every step once, in order"
    losses = [
        json.loads(line)["loss"] for line in (tmp_path / "runs/elastic/metrics.jsonl").read_text().splitlines()[1:]
    ]
    alone = [sys.executable, "-m", "minigpt", "train", "stories", "--name", "alone", *FLAGS]
    subprocess.run(alone, cwd=tmp_path, check=True, capture_output=True)
    lines = (tmp_path / "runs/alone/metrics.jsonl").read_text().splitlines()[1:]
    apart = max(abs(json.loads(line)["loss"] - loss) for line, loss in zip(lines, losses, strict=True))
    assert apart < 0.02
    print(f"cut at step {kept[0]}, killed at step {kept[1]}: {STEPS} steps, losses within {apart:.1e} of one process'")
