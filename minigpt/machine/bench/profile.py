"""Where the time goes: a trace by torch.profiler for Perfetto (ui.perfetto.dev), and its dearest operations.

On CUDA the kernels' own time is counted, elsewhere the processor's time in each operation less that of those it calls.
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
_GROUPS = (  # the first that matches a name, of a torch operation or of a kernel
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
    """Raises UserError for a file that could not be written, before anything slow is done."""
    if path is None:
        return
    if not path.name.endswith((".json", ".json.gz")):
        raise UserError(f"--profile {path}: a trace is a .json or .json.gz; name it so")
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
    """Each group's share of the time, and the operations that took the most."""

    groups: dict[str, float]
    operations: list[Operation]


class Profile(TypedDict):
    """A trace, and the figures of it."""

    file: str
    groups: dict[str, float]
    operations: list[Operation]


def profiled(job: Callable[[], object], runtime: Runtime, path: Path) -> Profile:
    """Run the job under the profiler and write its Chrome trace, packed if the file's name ends in .gz.

    Raises:
        StorageError: the file cannot be written.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else the profiler tells stderr when it starts and stops
    cuda = runtime.device.type == "cuda"
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    with profile(activities=kinds, acc_events=True) as trace:  # else torch 2.11 warns, of a single cycle too
        job()
        runtime.synchronise()
    try:
        path.open("wb").close()  # the exporter's own message would not say why
        trace.export_chrome_trace(str(path))
    except OSError as error:
        raise storage_error(path, error, "") from None
    return {"file": str(path), **table(_rows(trace, cuda))}


def _rows(trace: profile, cuda: bool) -> list[tuple[str, float, int]]:
    """(name, microseconds, calls) of everything that took time itself."""
    events = trace.key_averages()
    if cuda:
        events = [event for event in events if event.device_type.name == "CUDA" and not event.is_user_annotation]
        return [(event.key, event.self_device_time_total, event.count) for event in events]
    return [(event.key, event.self_cpu_time_total, event.count) for event in events]


def table(rows: list[tuple[str, float, int]]) -> Shares:
    """The shares of (name, microseconds, calls)."""
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
    """ "aten::addmm" -> "matrix products"; what no pattern knows is "other"."""
    return next((group for group, pattern in _GROUPS if re.search(pattern, name, re.I)), "other")
