"""Choose the attention kernel, and whether to compile, by timing one block and the loss on this machine.

A block's forward and backward pass takes milliseconds, so all kernels are timed before the first step of a run. The
loss is timed too if the vocabulary is large enough to matter. Compiling costs half a minute the first time, so it is
tried only if it may save more than that; torch keeps the compiled code in its cache, so the time is not lost. The
timings are kept in tuning.json in the cache directory, by machine, torch, shape and batch. A run keeps its choice in
its checkpoints, because an exact resume must use the same kernels.
"""

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from minigpt.config import ModelConfig
from minigpt.errors import first_line
from minigpt.measured import keep, recall
from minigpt.model import GPT
from minigpt.model.heads import make_head
from minigpt.model.kernels import fused
from minigpt.model.kernels.attention import scored, tiles
from minigpt.model.kernels.chunked_loss import head_loss, loss_terms
from minigpt.model.parts import ATTENTION
from minigpt.runtime.device import Runtime, measured_key

COLD, WARM, HOPED = 30.0, 5.0, 0.25
"""Seconds of a first and of a later compilation, and the share of a step that it may save (docs/LOG.md)."""
LOGITS = 1 << 21
"""The loss is timed if a micro-batch has at least this many logits; with fewer it is a small part of a step."""
SCORES = 1 << 31
"""Largest number of attention weights, in all layers together, that a kernel may keep for its backward pass."""


@dataclass(frozen=True)
class Choice:
    """The kernel of a run, whether it is compiled, and the reason in one line."""

    attention: str
    compile: bool
    reason: str = ""


@dataclass
class Timings:
    """Seconds of one micro-batch, forward and backward: of one block with each kernel, and of the loss."""

    eager: dict[str, float]
    eager_loss: float
    compiled: dict[str, float] = field(default_factory=dict)
    compiled_loss: float = 0.0

    def step(self, num_layers: int) -> float:
        """Seconds of all layers and the loss, without compilation."""
        return min(self.eager.values()) * num_layers + self.eager_loss

    def compiled_step(self, num_layers: int) -> float:
        """Seconds of all layers and the loss, compiled."""
        return min(self.compiled.values()) * num_layers + self.compiled_loss


Measure = Callable[[ModelConfig, Runtime, int, list[str], list[str]], Timings]
Clock = Callable[[list[Callable[[], Tensor]], Runtime, int], list[float]]
"""(passes, runtime, rounds) -> seconds of each pass."""


def choose(
    shape: ModelConfig,
    runtime: Runtime,
    compile: str,
    batch: int,
    passes: float,
    say: Callable[[str], None],
    measure: Measure | None = None,
) -> Choice:
    """Choose kernel and compilation by measurement.

    Args:
        shape: the model's shape; `attention` is kept if it is not auto.
        runtime: device and precision.
        compile: train.compile. auto compiles if that saves time in this run (never on mps).
        batch: number of sequences in a micro-batch.
        passes: how often the whole run computes a micro-batch, forward and backward.
        say: called with a message before a compilation begins.
        measure: times the kernels (default: `time_kernels`).
    """
    measure = measure or time_kernels
    key = _key(shape, runtime, batch)
    kernels = _kernels(shape, runtime, batch)
    timings = _known(key, kernels) or measure(shape, runtime, batch, kernels, [])
    on, tried = compile == "on", bool(timings.compiled)
    if compile == "auto" and runtime.device.type != "mps":
        if not tried and timings.step(shape.num_layers) * passes * HOPED > COLD and runtime.can_compile():
            say("testing whether torch.compile is faster: half a minute the first time")
            timings = _try_compiling(shape, runtime, batch, timings, measure)
        if timings.compiled:
            gain = timings.step(shape.num_layers) - timings.compiled_step(shape.num_layers)
            on = gain * passes > (WARM if tried else 0.0)
    used = timings.compiled if on and timings.compiled else timings.eager
    attention = shape.attention
    if attention == "auto":
        untimed = on and not timings.compiled  # the person knows that compiling is faster, so it is not tried
        attention = _worth_compiling(used) if untimed else min(used, key=used.__getitem__)
    keep(key, asdict(timings))
    words = [f"{name} {_ms(seconds)}" for name, seconds in timings.eager.items()]
    words += [f"{name} compiled {_ms(seconds)}" for name, seconds in timings.compiled.items()]
    if timings.eager_loss:
        words.append(f"the loss {_ms(timings.eager_loss)}")
    if timings.compiled_loss:
        words.append(f"compiled {_ms(timings.compiled_loss)}")
    taken = f"{attention}, compiled" if on else attention
    return Choice(attention, on, f"timed here, forward and backward, per block: {', '.join(words)}. Taken: {taken}")


def _ms(seconds: float) -> str:
    """_ms(0.0123) -> "12 ms", _ms(0.00123) -> "1.2 ms"."""
    return f"{1e3 * seconds:.{0 if seconds >= 0.01 else 1}f} ms"


def _try_compiling(shape: ModelConfig, runtime: Runtime, batch: int, eager: Timings, measure: Measure) -> Timings:
    """Time all kernels again, with one compiled. If the compiler fails, warn and continue without it."""
    try:
        return measure(shape, runtime, batch, list(eager.eager), [_worth_compiling(eager.eager)])
    except Exception as error:  # noqa: BLE001  the compiler may raise anything; eager always works
        warnings.warn(f"torch.compile cannot compile this model, running eager: {first_line(error)}", stacklevel=3)
        return eager


def _worth_compiling(eager: dict[str, float]) -> str:
    """The kernel to compile: the reference (whole or blockwise) if it is nearly the fastest, else the fastest; never
    "fused", which computes nothing under torch.compile.

    Compilation helps the reference most, since it fuses the softmax with the operations around it.
    """
    eager = {name: seconds for name, seconds in eager.items() if name != "fused" or len(eager) == 1}
    fastest = min(eager, key=eager.__getitem__)
    plain = min(("reference", "blockwise"), key=lambda name: eager.get(name, math.inf))
    return plain if eager.get(plain, math.inf) < 1.25 * eager[fastest] else fastest


def _kernels(shape: ModelConfig, runtime: Runtime, batch: int) -> list[str]:
    """The kernels to time: the one in the config, or all that fit in memory."""
    length, pairs = shape.max_seq_len, batch * shape.num_heads * shape.num_layers
    if shape.attention != "auto":
        return [shape.attention]
    kept = {"reference": pairs * length**2, "blockwise": pairs * scored(length)}
    names = [name for name in ATTENTION if kept.get(name, 0) <= SCORES]
    if len(tiles(length)) == 1 and "blockwise" in names:  # a single part is the reference itself
        names.remove("blockwise")
    if (runtime.device.type, runtime.precision) != ("cpu", "fp32") or fused.library() is None:
        names.remove("fused")
    return names


def time_kernels(
    shape: ModelConfig,
    runtime: Runtime,
    batch: int,
    eager: list[str],
    compiled: list[str],
    clock: Clock | None = None,
) -> Timings:
    """Time each of these kernels, and the loss if it is large (on some of its tokens).

    The kernels take turns, and the fastest pass of each counts, after one to warm up. Other programs may slow the
    machine down for a moment.
    """
    clock = clock or _fastest
    blocks = [_block_pass(shape, runtime, batch, name, False) for name in eager]
    blocks += [_block_pass(shape, runtime, batch, name, True) for name in compiled]
    seconds = clock(blocks, runtime, 8)
    timings = Timings(
        dict(zip(eager, seconds, strict=False)), 0.0, dict(zip(compiled, seconds[len(eager) :], strict=True))
    )
    tokens = batch * shape.max_seq_len
    if tokens * (shape.vocab_size or 1) >= LOGITS:
        # few on a GPU would time only launches
        some = max(1, min(tokens, 1024 if runtime.device.type == "cpu" else 8192) // shape.softmaxes)
        losses = [_loss_pass(shape, runtime, some, False)]
        losses += [_loss_pass(shape, runtime, some, True)] if compiled else []
        taken = [second * tokens / some for second in clock(losses, runtime, 8 if compiled else 4)]
        timings = replace(timings, eager_loss=taken[0], compiled_loss=sum(taken[1:]))
    return timings


def _block_pass(
    shape: ModelConfig, runtime: Runtime, batch: int, attention: str, compiled: bool
) -> Callable[[], Tensor]:
    """Make a function that runs the forward pass of one block: [B, T, C] -> a scalar."""
    one = shape.model_copy(update={"num_layers": 1, "vocab_size": 64, "bigrams": 0, "attention": attention})
    device, dtype = runtime.device, _weights(runtime)
    model = GPT(one).to(device, dtype).train()
    block = (model.compiled() if compiled else model).blocks[0]
    x = torch.randn(batch, shape.max_seq_len, shape.embed_dim, device=device, dtype=dtype, requires_grad=True)
    return lambda: block(x, model.rotary(slice(shape.max_seq_len))).sum()


def _loss_pass(shape: ModelConfig, runtime: Runtime, tokens: int, compiled: bool) -> Callable[[], Tensor]:
    """Make a function that computes the head and the loss of `tokens` tokens: [1, tokens, C] -> a scalar."""
    vocab_size, device, dtype = shape.vocab_size or 1, runtime.device, _weights(runtime)
    head = make_head(shape).to(device, dtype)
    hidden = torch.randn(1, tokens, shape.embed_dim, device=device, dtype=dtype, requires_grad=True)
    targets = torch.randint(vocab_size, (1, tokens), device=device)
    terms = torch.compile(loss_terms, dynamic=False) if compiled else None
    return lambda: head_loss(head, hidden, targets, vocab_size, valid=tokens, terms=terms)


def _weights(runtime: Runtime) -> torch.dtype:
    """The dtype of the weights."""
    return torch.bfloat16 if runtime.precision == "bf16-pure" else torch.float32


def _fastest(passes: list[Callable[[], Tensor]], runtime: Runtime, rounds: int) -> list[float]:
    """Seconds of each pass's fastest run, forward and backward. Passes take turns; the first round does not count."""
    seconds: list[list[float]] = [[] for _ in passes]
    for _ in range(rounds):
        for forward, taken in zip(passes, seconds, strict=True):
            runtime.synchronise()
            started = time.perf_counter()
            with runtime.products():
                with runtime.autocast():
                    out = forward()
                out.backward()
            runtime.synchronise()
            taken.append(time.perf_counter() - started)
    return [min(taken[1:]) for taken in seconds]


def _key(shape: ModelConfig, runtime: Runtime, batch: int) -> str:
    fields = shape.model_dump(exclude={"num_layers", "tie_embeddings", "init_std", "zero_init_residual"})
    return measured_key(runtime, batch, fields, _kernels(shape, runtime, batch))


def _known(key: str, kernels: list[str]) -> Timings | None:
    """The stored timings of these kernels; None if there are none, or if they have another form."""
    try:
        found = TypeAdapter(Timings).validate_python(recall(key))
    except ValidationError:
        return None
    return found if found.eager.keys() == set(kernels) >= found.compiled.keys() else None
