"""Choose the device and precision, and provide autocast, peak speed, seeds, and compilation with a fallback."""

import atexit
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import torch
from torch import nn

from minigpt.before_torch import SWITCH
from minigpt.download import cache_root
from minigpt.errors import ConfigError, first_line
from minigpt.files import private_folder
from minigpt.runtime.ranks import ALONE, Ranks

DTYPES = {
    "fp32": torch.float32,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "bf16-pure": torch.bfloat16,
    "fp8": torch.bfloat16,  # the dtype of its products' results
}


SLOW_PRODUCT = 0.1
"""Limit in seconds of one product in `peak_flops`, and about the time for all products of one size."""
PRODUCTS = {"cpu": (256, 1024), "mps": (1024, 4096, 8192)}
"""The sizes of the products in `peak_flops`; on other devices only 8,192."""


class Compilable(Protocol):
    """A model that can compile itself, such as minigpt.model.GPT."""

    def to(self, device: torch.device) -> Self: ...

    def compiled(self) -> Self: ...


Compiled = TypeVar("Compiled", bound=Compilable)


@dataclass(frozen=True)
class Runtime:
    """A device, the precision of its matrix products, whether models are compiled, and the ranks of this training."""

    device: torch.device
    precision: str
    compile: bool = False
    ranks: Ranks = ALONE

    def autocast(self) -> AbstractContextManager[object]:
        """Run matrix products in `precision` (weights and sums stay fp32)."""
        if self.precision in ("fp32", "tf32", "bf16-pure"):  # bf16-pure has its weights in bf16
            return nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])

    @contextmanager
    def products(self) -> Iterator[None]:
        """Inside the `with` block, use full fp32 for fp32 products on CUDA, or TF32 if the precision is tf32."""
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("high" if self.precision == "tf32" else "highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(before)

    def prepare(self, model: Compiled) -> Compiled:
        """Move the model to the device, and compile it if asked for. If the compiler fails, warn and do not compile."""
        model = model.to(self.device)
        return model.compiled() if self.compile and self.can_compile() else model

    def can_compile(self) -> bool:
        """Test torch's compiler with a tiny function, in a second. Warns once if the C++ compiler or Triton fails."""
        return _compiler_works(str(self.device))

    def seed(self, seed: int) -> None:
        """Seed the generators from which dropout draws.

        On a CPU this takes a microsecond. `torch.manual_seed` takes half a millisecond, since it also seeds CUDA and
        XPU; where these are not in use, it writes down the stack of its caller for each.
        """
        if self.device.type == "cpu":
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)

    @contextmanager
    def own_draws(self) -> Iterator[None]:
        """Give the generators back, after the `with` block, as they were before; inside it, they may be seeded."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            yield

    def empty_cache(self) -> None:
        """Free the memory that the device's allocator caches."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        elif self.device.type == "mps":
            torch.mps.empty_cache()

    def synchronise(self) -> None:
        """Wait until the device has finished, so that timings are right."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def __str__(self) -> str:
        name = device_name(self.device)
        ranks = f", {self.ranks.world} ranks" if self.ranks.world > 1 else ""
        return f"{name}, {self.precision}{', compiled' if self.compile else ''}{ranks}"


@cache
def _compiler_works(device: str) -> bool:
    if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(_compiled_folder())
    warnings.filterwarnings("ignore", "TensorFloat32 tensor cores")  # train.precision decides that
    try:
        torch.compile(lambda x: torch.sin(x) + 1)(torch.zeros(8, device=device))
    except Exception as error:  # noqa: BLE001  the compiler may raise anything; eager always works
        warnings.warn(f"torch.compile does not work here, running eager: {first_line(error)}", stacklevel=4)
        return False
    return True


def _compiled_folder() -> Path:
    """The folder in which torch keeps compiled code. Only this user may write there."""
    folder = cache_root() / "inductor"  # not /tmp, which is empty after a reboot
    try:
        private_folder(folder)
    except OSError as error:
        warnings.warn(f"compiled kernels are not kept: {folder}: {error.strerror}", stacklevel=5)
        folder = Path(tempfile.mkdtemp(prefix="minigpt-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def make_runtime(device: str = "auto", precision: str = "auto") -> Runtime:
    """Make a runtime from the two settings. Raises ConfigError naming the devices that are here."""
    where = pick_device(device)
    if precision == "auto":
        precision = _best_precision(where)
    if precision == "fp16" and where.type == "cpu":
        raise ConfigError("train.precision: fp16 does not train on a CPU; use bf16 or fp32")
    _check_special(where, precision)
    return Runtime(where, precision)


def check_runtime(device: str, precision: str) -> None:
    """Raise the errors of `make_runtime`, but measure nothing: for a check before a text is read."""
    make_runtime(device, "fp32" if precision == "auto" else precision)


def _check_special(device: torch.device, precision: str) -> None:
    """Raise ConfigError if the precision is tf32 or fp8 and the device or torchao does not support it."""
    needed = {"tf32": (8, 0), "fp8": (8, 9)}.get(precision)
    if needed is None:
        return
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < needed:
        what = "an NVIDIA GPU from Ampere on" if precision == "tf32" else "an NVIDIA GPU from Hopper on (or Ada)"
        raise ConfigError(
            f"train.precision: {precision} needs {what}, not {device_name(device)}; use auto, bf16 or fp32"
        )
    if precision == "fp8" and importlib.util.find_spec("torchao") is None:
        raise ConfigError("train.precision: fp8 needs torchao; pip install 'minigpt[fp8]', or use bf16")


def pick_device(name: str = "auto") -> torch.device:
    """Choose the device; auto prefers cuda, then mps, then cpu. Raises ConfigError if the device is not here."""
    here = ["cpu"]
    if torch.backends.mps.is_available():
        here.insert(0, "mps")
    if torch.cuda.is_available():
        here.insert(0, "cuda")
    if name == "auto":
        return torch.device(here[0])
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"train.device: {name!r} is not a device here; choose from auto, {', '.join(here)}") from None
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type not in here or (device.index or 0) >= count:
        raise ConfigError(f"train.device: {name} is not here; choose from auto, {', '.join(here)}")
    return device


def _best_precision(device: torch.device) -> str:
    """Choose bf16 if its products are measurably faster than in fp32, else fp32 (fp16 on older CUDA devices)."""
    if device.type == "mps":
        return "fp32"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if peak_flops("cpu", "bf16") > 1.3 * peak_flops("cpu", "fp32") else "fp32"


@cache
def peak_flops(device: str, precision: str) -> float:
    """FLOP/s of a large matrix product, measured now (0.1 s). MFU is the share of this that training reaches."""
    runtime, dtype = Runtime(torch.device(device), precision), DTYPES[precision]
    generator = torch.Generator(device).manual_seed(0)  # a GPU multiplies ones faster than real numbers
    best = 0.0
    # A CPU without bf16 instructions takes 2 s for a bf16 product of 1,024, and an M1's GPU half a second for one of
    # 8,192 in fp32; there only the smaller ones are measured.
    for size in PRODUCTS.get(runtime.device.type, (8192,)):
        if best and 2 * size**3 / best > SLOW_PRODUCT:
            break
        left, right = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
        spent = 0.0
        for turn in range(20):  # the best of many: other programs may use the machine
            runtime.synchronise()
            start = time.perf_counter()
            with runtime.products():
                torch.mm(left, right)
            runtime.synchronise()
            took = time.perf_counter() - start
            best, spent = max(best, 2 * size**3 / took), spent + took
            if spent > SLOW_PRODUCT and turn >= 2:  # the first one also starts threads
                break
    return best


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode (no dropout) inside the `with` block, then restore the mode of each part."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device or the host has no more memory."""
    words = ("out of memory", "can't allocate memory", "not enough memory", "failed to allocate", "bad_alloc")
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )


def step_seed(seed: int, step: int, rank: int = 0, micro: int = 0) -> int:
    """Seed of one micro-batch's dropout. It is a pure function, so a resumed run needs no state of the generator.

    The numbers are mixed (splitmix64's finaliser, Steele et al., 2014), so that neighbouring steps get unrelated seeds.
    """
    value = 0
    for part in (seed, step, rank, micro):
        value = (value + part + 0x9E3779B97F4A7C15) & (2**64 - 1)
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
        value ^= value >> 31
    return value >> 1


def device_name(device: torch.device) -> str:
    """The name of the GPU, or "cpu" or "mps"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def machine_name(device: torch.device) -> str:
    """The name of the GPU, or of the processor with "cpu" or "mps", for the keys of stored measurements."""
    if device.type == "cuda":
        return device_name(device)
    chip = f"{platform.processor() or platform.machine()} {os.cpu_count()} {torch.backends.cpu.get_cpu_capability()}"
    return f"{device.type} {chip}"


def measured_key(runtime: Runtime, *parts: Any) -> str:
    """The key of a measurement that depends on these parts, this machine, its threads, the precision, and torch."""
    machine = [machine_name(runtime.device), torch.__version__, torch.get_num_threads(), runtime.precision]
    return hashlib.sha256(json.dumps([*machine, *parts], sort_keys=True).encode()).hexdigest()[:16]


def mkl_code() -> str:
    """Which code of MKL this process runs: "intel" (Intel's fast code, on another processor) or "usual"."""
    return os.environ.get(SWITCH, "usual")


def hardware() -> dict[str, object]:
    """The facts about this machine for the receipt."""
    facts: dict[str, object] = {"cpu_cores": os.cpu_count(), "threads": torch.get_num_threads(), "mkl": mkl_code()}
    if torch.cuda.is_available():
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return facts
