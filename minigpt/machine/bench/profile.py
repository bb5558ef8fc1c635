"""Profile a job: write a trace by torch.profiler for Perfetto (ui.perfetto.dev), and list the slowest operations.

On CUDA the time of the kernels counts; elsewhere the processor time of each operation without those that it calls.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from torch.profiler import ProfilerActivity, profile

from minigpt.errors import StorageError, UserError, storage_error
from minigpt.machine.bench.timing import rounded
from minigpt.runtime.device import Runtime

TOP = 15
_GROUPS = (  # the first pattern that matches the name of a torch operation or a kernel gives its group
    ("optimizer", r"adam|optimizer|foreach|multi_tensor|lerp"),
    ("attention", r"attention|flash|fmha|sdpa"),
    ("matrix products", r"::(add|b|baddb)?mm(_|$)|::linear|::matmul|mkldnn|mkl_|gemm|gemv|cutlass|cublas|nvjet|xmma"),
    (
        "elementwise",
        r"::(add|sub|mul|div|neg|rsub|pow|sqrt|exp|sin|cos|tanh|where|fill|zero|copy|cat|stack|masked|softmax|sum|mean"
        r"|nll|bernoulli|embedding|index|norm|argmax|topk)|_softmax|norm|elu|silu|dropout|elementwise|reduce|fused|triton"
        r"|vectorized|cat_?array|memcpy|memset",
    ),
)


def check_profile(path: Path | None) -> None:
    """Raise UserError if the file cannot be written, before anything slow begins."""
    if path is None:
        return
    if not path.name.endswith((".json", ".json.gz")):
        raise UserError(f"--profile {path}: a trace needs a name that ends in .json or .json.gz")
    if not path.parent.is_dir():
        raise StorageError(f"--profile {path}: there is no directory {path.parent}; make it first")


class Operation(TypedDict):
    """One of the operations that took the most time."""

    name: str
    group: str
    share: float
    ms: float
    calls: int


class Shares(TypedDict):
    """Each group's share of the time, and the operations that took the most time."""

    groups: dict[str, float]
    operations: list[Operation]


class Profile(TypedDict):
    """A trace and its figures."""

    file: str
    groups: dict[str, float]
    operations: list[Operation]


def profiled(job: Callable[[], object], runtime: Runtime, path: Path) -> Profile:
    """Run the job under the profiler and write its Chrome trace, compressed if the file's name ends in .gz.

    Raises:
        StorageError: the file cannot be written.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler writes to stderr when it starts and stops
    cuda = runtime.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds, acc_events=True) as trace:  # else torch 2.11 warns, even about one cycle
        job()
        runtime.synchronise()
    try:
        path.open("wb").close()  # the exporter's own error would not give the reason
        trace.export_chrome_trace(str(path))
    except OSError as error:
        raise storage_error(path, error, "choose another --profile") from None
    return {"file": str(path), **table(_rows(trace, cuda))}


def _rows(trace: profile, cuda: bool) -> list[tuple[str, float, int]]:
    """(name, microseconds, calls) of each operation; the time does not include operations that it calls."""
    events = trace.key_averages()
    if cuda:
        events = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
        return [(event.key, event.self_device_time_total, event.count) for event in events]
    return [(event.key, event.self_cpu_time_total, event.count) for event in events]


def table(rows: list[tuple[str, float, int]]) -> Shares:
    """Compute the shares from rows (name, microseconds, calls)."""
    total = sum(microseconds for _, microseconds, _ in rows) or 1.0
    groups: dict[str, float] = defaultdict(float)
    for name, microseconds, _ in rows:
        groups[group_of(name)] += microseconds / total
    dearest = sorted(rows, key=lambda row: -row[1])[:TOP]
    return {
        "groups": {name: rounded(share) for name, share in sorted(groups.items(), key=lambda item: -item[1])},
        "operations": [
            {
                "name": name,
                "group": group_of(name),
                "share": rounded(microseconds / total),
                "ms": rounded(microseconds / 1e3),
                "calls": calls,
            }
            for name, microseconds, calls in dearest
        ],
    }


def group_of(name: str) -> str:
    """ "aten::addmm" -> "matrix products"; a name that no pattern matches -> "other"."""
    return next((group for group, pattern in _GROUPS if re.search(pattern, name, re.I)), "other")
