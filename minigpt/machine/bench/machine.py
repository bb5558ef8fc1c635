"""Measure this machine's limits (matrix products, reading memory) and the memory that this process has used."""

import re
import statistics
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch

from minigpt.errors import UserError
from minigpt.machine.bench.timing import stopwatch
from minigpt.runtime.device import Runtime, device_name, out_of_memory, peak_flops


def ceilings(device: torch.device, precisions: Iterable[str]) -> dict[str, float]:
    """FLOP/s of a large matrix product in bf16, in fp32 and in `precisions`."""
    return {name: peak_flops(str(device), name) for name in sorted({"bf16", "fp32", *precisions})}


def read_bandwidth(device: torch.device) -> float:
    """Bytes per second when summing an array that is larger than any cache; the median of seven times."""
    size = 1 << 28 if device.type == "cpu" else 1 << 30
    values, runtime = torch.ones(size // 4, device=device), Runtime(device, "fp32")

    def read() -> None:
        values.sum()
        runtime.synchronise()

    read()
    return size / statistics.median(stopwatch(read) for _ in range(7))


def peak_memory(device: torch.device) -> int | None:
    """Peak bytes so far: of tensors on a CUDA device, else of the whole process; None if the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"), re.M)):
        return int(found[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def start_memory(device: torch.device) -> None:
    """Reset CUDA's peak memory, which measuring the ceilings has raised. The peak of a process cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


class Machine(TypedDict):
    """The machine's part of every report on a model."""

    device: str
    device_name: str
    threads: int


def about(device: torch.device) -> Machine:
    """Fill in device, device_name and threads."""
    return {"device": str(device), "device_name": device_name(device), "threads": torch.get_num_threads()}


@contextmanager
def enough_memory(fix: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors into a UserError that ends with the fix."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if out_of_memory(error):
            raise UserError(f"out of memory; {fix}") from None
        raise
