"""Test torch with probes: devices, precisions, attention kernels, compilation, and whether a model learns.

torch.compile runs in a separate process with an empty cache and a time limit. A cached result would prove nothing, and
a compiler that hangs or crashes must not stop the doctor.
"""

import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from minigpt.config import ModelConfig, OptimizerConfig
from minigpt.console import counted
from minigpt.errors import ConfigError
from minigpt.machine.doctor.check import Check, output_of, reason

if TYPE_CHECKING:
    import torch

PRECISIONS = ("fp32", "bf16", "fp16")
# Largest error, relative to the product's largest value: several rounding errors of each format (2^-24, 2^-9, 2^-12).
# The one of fp32 is wider, since CUDA may use TF32 for fp32 if the user allows it.
TOLERANCE = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 2e-3}
COMPILE_LIMIT = 90  # seconds
LEARNING_STEPS, LEARNING_DROP = 20, 1.0


def torch_itself() -> Check:
    """Whether torch can be imported."""
    try:
        import torch
    except Exception as error:  # noqa: BLE001  a broken build raises OSError, ImportError, RuntimeError, ...
        return Check("torch", False, reason(error), "install it again: pip install --force-reinstall torch")
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
    capability = torch.backends.cpu.get_cpu_capability()
    detail = f"{torch.__version__} ({build}; CPU kernels {capability}; {counted(torch.get_num_threads(), 'thread')})"
    figures = {"version": str(torch.__version__), "cuda": torch.version.cuda, "cpu_capability": capability}
    return Check("torch", True, detail, figures=figures | {"threads": torch.get_num_threads()})


def devices() -> list[str]:
    """The devices that torch offers here. The first is the one that `auto` chooses."""
    import torch

    here = [f"cuda:{index}" for index in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return here + (["mps"] if torch.backends.mps.is_available() else []) + ["cpu"]


def accelerator() -> Check:
    """Whether torch can use a GPU."""
    import torch

    found = devices()
    if found[0] == "cpu":
        detail = "none; everything runs on the CPU"
        if shutil.which("nvidia-smi") and not torch.cuda.is_available():
            detail = "an NVIDIA driver is here, but torch cannot use it"
            build = "update the driver" if torch.version.cuda else "install the CUDA build of torch (pytorch.org)"
            return Check("accelerator", None, detail, f"to train on the GPU: {build}", {"devices": found})
        return Check("accelerator", None, detail, figures={"devices": found})
    names: list[str] = []
    for name in found[:-1]:
        card = torch.cuda.get_device_properties(name) if name.startswith("cuda") else None
        names.append(f"{name}: {card.name}, {card.total_memory / 1e9:.0f} GB" if card else name)
    return Check("accelerator", True, "; ".join(names), figures={"devices": found})


def matmul(device: str, precision: str) -> Check:
    """Whether a matrix product is close to the one in float64, and how fast it is. Only fp32 is required."""
    import torch

    from minigpt.runtime.device import DTYPES, make_runtime

    name, size = f"{precision} on {device}", 512 if device == "cpu" else 4096
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(size, size, generator=generator) for _ in range(2))
    try:
        a, b = (matrix.to(device, DTYPES[precision]) for matrix in (left, right))
        product = (a[:64] @ b).cpu().double()  # to the CPU before double(): mps has no float64
        truth = (
            a[:64].double().cpu() @ b.double().cpu() if device != "mps" else a[:64].cpu().double() @ b.cpu().double()
        )
        error = ((product - truth).abs().max() / truth.abs().max()).item()
        seconds = _time(lambda: a @ b, device)
    except (RuntimeError, TypeError) as failure:  # torch raises these for an unsupported format
        return _no_precision(name, precision, reason(failure))
    if not error <= TOLERANCE[precision]:  # also true for NaN
        return _no_precision(name, precision, f"products are wrong by {error:.1e}")
    speed = 2 * size**3 / seconds
    try:
        make_runtime(device, precision)
        note = "; chosen by auto" if (chosen := make_runtime(device).precision == precision) else ""
    except ConfigError:
        note, chosen = "; not for training", False
    figures = {"flops_per_second": speed, "relative_error": error, "auto": chosen}
    return Check(name, True, f"{speed / 1e9:,.0f} GFLOP/s, error {error:.0e}{note}", figures=figures)


def _no_precision(name: str, precision: str, detail: str) -> Check:
    if precision == "fp32":
        return Check(name, False, detail, "nothing can train here: update the driver and torch, or use another device")
    return Check(name, None, detail, f"do not set train.precision {precision} on this device")


def precision(device: str) -> Check:
    """Which precision train.precision auto chooses, why, its error against fp32, and which others are possible."""
    from minigpt.runtime.device import DTYPES, make_runtime, peak_flops
    from minigpt.runtime.precision import self_test

    runtime = make_runtime(device)
    possible: list[str] = []
    for name in DTYPES:
        try:
            possible.append(make_runtime(device, name).precision)
        except ConfigError:
            continue
    times = 1.0 if device == "mps" else peak_flops(device, "bf16") / peak_flops(device, "fp32")
    verdict = self_test(ModelConfig(vocab_size=96), runtime)
    detail = f"auto takes {runtime.precision}: bf16 products are {times:.2g} times as fast as fp32's"
    if runtime.precision != "fp32":
        detail += f"; {verdict}"
    figures = {"auto": runtime.precision, "bf16_speed": times, "gradient_error": verdict.gradient, "possible": possible}
    advice = "" if verdict.ok else "runs fall back to fp32: update the driver and torch"
    name = f"precision on {device}"
    return Check(name, verdict.ok or None, f"{detail}; possible: {', '.join(possible)}", advice, figures)


def _time(work: Callable[[], object], device: str, limit: float = 0.3) -> float:
    """Seconds of the fastest of three or more calls, after one to warm up. It ends after about `limit` seconds."""
    import torch

    from minigpt.runtime.device import Runtime

    runtime = Runtime(torch.device(device), "fp32")
    work()
    runtime.synchronise()
    best, calls, end = math.inf, 0, time.perf_counter() + limit
    while calls < 3 or time.perf_counter() < end:
        calls += 1
        start = time.perf_counter()
        work()
        runtime.synchronise()
        best = min(best, time.perf_counter() - start)
    return best


def attention(device: str) -> Check:
    """Run attention forward and backward with each kernel, and compare it with the readable reference."""
    import torch
    import torch.nn.functional as F
    from torch.nn.attention import SDPBackend, sdpa_kernel

    from minigpt.model import reference

    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(2, 4, 256, 64, generator=generator).to(device, dtype).requires_grad_() for _ in range(3)
    )
    with torch.no_grad():
        truth = reference.attention(query.cpu().float(), key.cpu().float(), value.cpu().float())

    def run() -> "torch.Tensor":
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        out.sum().backward()
        return out

    kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]
    if device.startswith("cuda"):
        kernels += [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
    times: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for label, kernel in [("auto", None), *((k.name.lower().removesuffix("_attention"), k) for k in kernels)]:
        try:
            with sdpa_kernel(kernel) if kernel else nullcontext():
                wrong = (run().detach().cpu().float() - truth).abs().max().item()
                if not wrong < (0.05 if dtype == torch.bfloat16 else 1e-4):
                    raise RuntimeError(f"wrong by {wrong:.1e}")
                times[label] = 1e3 * _time(run, device, limit=0.1)
        except RuntimeError as error:
            times[label], reasons[label] = None, reason(error)
    name, figures = f"attention on {device}", {"milliseconds": times, "reasons": reasons}
    detail = ", ".join(f"{label} {'fails' if ms is None else f'{ms:.2f} ms'}" for label, ms in times.items())
    if times["auto"] is None:
        return Check(name, False, f"{detail} ({reasons['auto']})", "set model.attention reference", figures)
    return Check(name, True, detail, figures=figures)


def learning(device: str) -> Check:
    """Train a tiny GPT on a repeating text for 20 steps, with this machine's settings. Its loss must fall by 1 nat."""
    import torch

    from minigpt.model import GPT
    from minigpt.model.loss import next_token_loss
    from minigpt.runtime.device import make_runtime
    from minigpt.training.optim import make_optimizer

    runtime = make_runtime(device)
    model = GPT(ModelConfig(vocab_size=8, embed_dim=32, num_heads=2, num_layers=2, max_seq_len=32), seed=1).to(device)
    optimizer = make_optimizer(model, OptimizerConfig(kind="adamw", learning_rate=1e-2))
    text = (torch.arange(4 * 33) % 8).view(4, 33).to(device)  # 0 1 2 ... 7 0 1 ...: [B, T + 1]
    losses: list[float] = []
    for _ in range(LEARNING_STEPS + 1):
        with runtime.autocast():
            logits = model(text[:, :-1])
        loss = next_token_loss(logits, text[:, 1:])
        losses.append(loss.item())
        model.zero_grad()
        loss.backward()
        optimizer.step()
    drop = losses[0] - losses[-1]
    detail = f"loss {losses[0]:.2f} -> {losses[-1]:.2f} in {LEARNING_STEPS} steps of {runtime.precision}"
    figures = {"first_loss": losses[0], "last_loss": losses[-1], "precision": runtime.precision}
    if drop >= LEARNING_DROP:
        return Check(f"learning on {device}", True, detail, figures=figures)
    advice = (
        f"it must fall by {LEARNING_DROP:.0f}: try --train.precision fp32, --model.attention reference, another torch"
    )
    return Check(f"learning on {device}", False, detail, advice, figures)


def torch_compile(limit: float = COMPILE_LIMIT) -> Check:
    """Whether torch.compile can compile a small function for the device that `auto` chooses. Training works without."""
    name, advice = "torch.compile", "training runs eager without it; set train.compile off to silence the warning"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
        code = "from minigpt.machine.doctor.kernels import compile_here; compile_here()"
        try:
            done = output_of([sys.executable, "-c", code], limit, environment)
        except subprocess.TimeoutExpired:
            return Check(name, None, f"not done after {limit:.0f} s", advice)
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return Check(name, None, said[:160], advice)
    if "error" in result:
        return Check(name, None, result["error"], advice)
    return Check(name, True, f"works on {result['device']}, {result['seconds']:.1f} s the first time", figures=result)


def compile_here() -> None:
    """Compile a small function in this process and print {"device", "seconds"} or {"error"} as JSON."""
    import torch

    def work(x: "torch.Tensor") -> "torch.Tensor":
        return torch.nn.functional.gelu(x).mul(2.0).softmax(-1)

    x = torch.linspace(-1, 1, 64, device=devices()[0]).view(8, 8)
    start = time.perf_counter()
    try:
        same = torch.allclose(torch.compile(work)(x), work(x), atol=1e-5)
        result = {"device": str(x.device), "seconds": time.perf_counter() - start}
        print(json.dumps(result if same else {"error": "it computes wrong results"}))
    except Exception as error:  # noqa: BLE001  the compiler may raise anything; the parent process reports it
        print(json.dumps({"error": reason(error)}))
