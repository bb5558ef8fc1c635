"""What works on this machine, found by trying it: each probe does one small thing and reports a Check.

Nothing is believed because it is installed: products are multiplied and compared, a C++ program is compiled, a model
learns. Torch is imported inside the probes, since a doctor must also speak where torch is broken.
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
    """(name, probe) in order; those that need torch come only where torch can be imported."""
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
    """Run the probes in turn, telling `starting` each name first; one that breaks is a Check that says so."""
    for name, probe in probes:
        starting(name)
        start = time.perf_counter()
        try:
            check = probe()
        except Exception as error:  # noqa: BLE001  a doctor reports whatever goes wrong, and goes on
            check = Check(name, False, reason(error), "this should work everywhere; please report it with this line")
        yield replace(check, seconds=round(time.perf_counter() - start, 3))
