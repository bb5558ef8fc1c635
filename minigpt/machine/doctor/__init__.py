"""Test what works on this machine: each probe tries one small thing and returns a Check.

An installed package may still be broken, so everything is tried: matrices are multiplied and compared, a C++ program
is compiled, a model learns. Torch is imported inside the probes, so that the doctor also works if torch is broken.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial

from minigpt.machine.doctor import kernels, machine
from minigpt.machine.doctor.check import Check, reason

__all__ = ["Check", "Probe", "all_probes", "examine"]

Probe = Callable[[], Check]


def all_probes() -> Iterator[tuple[str, Probe]]:
    """Yield (name, probe) in order. Probes that need torch are left out if torch cannot be imported."""
    yield from (("python", machine.python), ("minigpt", machine.minigpt), ("torch", kernels.torch_itself))
    yield from (("system", machine.system), ("memory", machine.memory), ("disk", machine.disk))
    yield from (("cache", machine.cache), ("data", machine.data), ("C++ compiler", machine.cpp_compiler))
    for extra, distributions in machine.extras().items():
        yield f"extra {extra}", partial(machine.extra, extra, distributions)
    if not kernels.torch_itself().ok:
        return
    yield "accelerator", kernels.accelerator
    for device in kernels.devices():
        for precision in kernels.PRECISIONS:
            yield f"{precision} on {device}", partial(kernels.matmul, device, precision)
        yield f"precision on {device}", partial(kernels.precision, device)
        yield f"attention on {device}", partial(kernels.attention, device)
        yield f"learning on {device}", partial(kernels.learning, device)
    yield "torch.compile", kernels.torch_compile


def examine(
    probes: Iterable[tuple[str, Probe]], starting: Callable[[str], None] = lambda name: None
) -> Iterator[Check]:
    """Run the probes one after another, calling `starting` with each name first. A probe's error becomes a Check."""
    for name, probe in probes:
        starting(name)
        start = time.perf_counter()
        try:
            check = probe()
        except Exception as error:  # noqa: BLE001  the doctor reports any error and continues
            check = Check(name, False, reason(error), "this should work everywhere; please report it with this line")
        yield replace(check, seconds=round(time.perf_counter() - start, 3))
