"""Measure the time to the first token and the speed of decoding, for `minigpt bench generate`.

Each new token needs every weight once, so memory limits the decoding of few sequences: a token takes at least (bytes of
the weights) / (bytes per second of memory). This bound counts the matrices, the head, and the scales of int8. It does
not count the embedding and position tables, of which a token reads one row, nor the key/value cache. A model that fits
into the processor's caches can be faster than the bound.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from minigpt.config import GenerationConfig
from minigpt.errors import UserError
from minigpt.generation import generate
from minigpt.generation.fast.prepare import prepare_decoding
from minigpt.machine.bench.machine import about, enough_memory, peak_memory, read_bandwidth, start_memory
from minigpt.machine.bench.profile import Profile, check_profile, profiled
from minigpt.machine.bench.rivals import Counterpart, build_counterpart, find_counterpart
from minigpt.machine.bench.timing import Spread, SpreadFigures, Tell, alternate, rounded, speed_ratio
from minigpt.model import GPT
from minigpt.runtime.device import DTYPES, Runtime

NEW_TOKENS = 64  # fewer if the context is too short
PROFILED_TOKENS = 16
WARM_TOKENS = 2  # the smallest number that can be asked for


@dataclass
class Decoding:
    """The times, in seconds, at which the tokens of one generation were finished."""

    times: list[float] = field(default_factory=lambda: [time.perf_counter()])

    def mark(self) -> None:
        """Note the time of a new token."""
        self.times.append(time.perf_counter())

    @property
    def first(self) -> float:
        """Seconds to the first token: reading the prompt."""
        return self.times[1] - self.times[0]

    @property
    def others(self) -> list[float]:
        """Seconds of each token after the first."""
        return [later - earlier for earlier, later in itertools.pairwise(self.times[1:])]


@dataclass(frozen=True)
class Writer:
    """A side that generates. `write` generates the given number of tokens per sequence."""

    name: str
    precision: str
    parameters: int
    weight_bytes: int
    write: Callable[[int], Decoding]


class GenerateSide(TypedDict):
    """One side's figures. ratio: our speed / this side's speed; None for ours."""

    name: str
    precision: str
    parameters: int
    weight_bytes: int
    ms_to_first_token: SpreadFigures
    ms_per_token: SpreadFigures
    tokens_per_second: float
    bound_ms_per_token: float
    share_of_bound: float
    ratio: float | None


class GenerateReport(TypedDict):
    """The object that `minigpt bench generate --json` prints."""

    model: dict[str, Any]
    source: str | None
    prompt_tokens: int
    new_tokens: int
    batch_size: int
    device: str
    device_name: str
    threads: int
    bandwidth_gb_per_second: float
    peak_memory_bytes: int | None
    rounds: int
    sides: list[GenerateSide]
    notes: list[str]
    profile: Profile | None


def bench_generate(
    model: GPT,
    *,
    prompt_tokens: int = 16,
    new_tokens: int | None = None,
    batch_size: int = 1,
    precision: str = "fp32",
    rounds: int = 3,
    vs_hf: bool = False,
    profile: Path | None = None,
    tell: Tell = lambda what: None,
) -> GenerateReport:
    """Measure greedy generation from random ids.

    Args:
        model: any model, on its device; `prepare_decoding` changes it.
        prompt_tokens: number of ids in each prompt.
        new_tokens: number of tokens to add, at least 2 (default: 64, or fewer if the context is too short).
        batch_size: number of sequences at a time.
        precision: precision of the weights: fp32, bf16, or int8 (on a CPU).
        rounds: number of rounds, in which the sides take turns.
        vs_hf: also measure transformers' `generate`, in fp32 and bf16.
        profile: file for a trace of our first 16 tokens.

    Raises:
        UserError: the tokens do not fit into the context, transformers is not installed, or memory ran out.
    """
    check_profile(profile)
    counterpart = find_counterpart(model.config) if vs_hf else None
    count = _fitting(prompt_tokens, new_tokens, model.config.max_seq_len)
    runtime = Runtime(model.embedding.weight.device, precision)
    with enough_memory("lower --batch-size, --prompt-tokens or the model"):
        start_memory(runtime.device)
        prompt = random_prompt(model, batch_size, prompt_tokens)
        ours = our_writer(model, prompt, runtime)
        ours.write(WARM_TOKENS)
        memory = peak_memory(runtime.device)  # only our side's: the rivals are not built yet
        writers = [ours, *(_rivals(counterpart, prompt, tell) if counterpart else ())]
        tell("measuring the machine")
        bandwidth = read_bandwidth(runtime.device)
        timings = alternate({side.name: lambda side=side: side.write(count) for side in writers}, rounds, tell)
        trace = profiled(lambda: ours.write(min(count, PROFILED_TOKENS)), runtime, profile) if profile else None
    return {
        "model": model.config.model_dump(mode="json"),
        "source": str(model.source) if model.source else None,
        "prompt_tokens": prompt_tokens,
        "new_tokens": count,
        "batch_size": batch_size,
        **about(runtime.device),
        "bandwidth_gb_per_second": rounded(bandwidth / 1e9),
        "peak_memory_bytes": memory,
        "rounds": rounds,
        "sides": [side_row(s, timings[s.name], timings[ours.name], batch_size, bandwidth) for s in writers],
        "notes": list(counterpart.notes) if counterpart else [],
        "profile": trace,
    }


def random_prompt(model: GPT, batch_size: int, length: int) -> Tensor:
    """Random ids [B, T] on the model's device."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size or 1, (batch_size, length), generator=generator)
    return ids.to(model.embedding.weight.device)


def _rivals(counterpart: Counterpart, prompt: Tensor, tell: Tell) -> Iterator[Writer]:
    """Yield transformers in fp32 and in bf16, warmed up."""
    for precision in ("fp32", "bf16"):
        tell(f"building transformers {precision}")
        writer = hf_writer(counterpart, prompt, Runtime(prompt.device, precision))
        writer.write(WARM_TOKENS)
        yield writer


def _fitting(prompt_tokens: int, new_tokens: int | None, context: int) -> int:
    """The number of tokens to add. They must fit into the context: reading a new window would count as decoding."""
    room = context - prompt_tokens
    if room < 2 or (new_tokens or 0) > room:
        raise UserError(
            f"--prompt-tokens {prompt_tokens} and --new-tokens {new_tokens or 2} do not fit into the model's context "
            f"of {context}; lower one"
        )
    return new_tokens or min(NEW_TOKENS, room)


def side_row(
    writer: Writer, rounds: list[Decoding], ours: list[Decoding], batch_size: int, bandwidth: float
) -> GenerateSide:
    """Compute one side's figures; its speed is that of the median token.

    Args:
        rounds, ours: the generations of this side, and of our side.
        bandwidth: bytes per second.
    """
    tokens = Spread.of([seconds for decoding in rounds for seconds in decoding.others])
    bound = writer.weight_bytes / bandwidth
    ratio = None
    if rounds is not ours:
        ratio = rounded(speed_ratio(*([statistics.median(d.others) for d in side] for side in (ours, rounds))))
    return {
        "name": writer.name,
        "precision": writer.precision,
        "parameters": writer.parameters,
        "weight_bytes": writer.weight_bytes,
        "ms_to_first_token": Spread.of([decoding.first for decoding in rounds]).figures(1e3),
        "ms_per_token": tokens.figures(1e3),
        "tokens_per_second": rounded(batch_size / tokens.median),
        "bound_ms_per_token": rounded(bound * 1e3),
        "share_of_bound": rounded(bound / tokens.median),
        "ratio": ratio,
    }


def weight_bytes(model: nn.Module) -> int:
    """Bytes of the weights that one token reads: all matrices except lookup tables. A tied head counts."""
    read = {
        id(weight): weight.numel() * weight.element_size()
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for name, weight in module.named_parameters(recurse=False)
        if weight.dim() >= 2 or name == "scale"
    }
    return sum(read.values())


def our_writer(model: GPT, prompt: Tensor, runtime: Runtime) -> Writer:
    """Make the side of minigpt's engine, with greedy decoding."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    model = prepare_decoding(model, runtime.precision)

    def write(count: int) -> Decoding:
        decoding = Decoding()
        for _ in generate(model, prompt, GenerationConfig(max_new_tokens=count, temperature=0)):
            runtime.synchronise()
            decoding.mark()
        return decoding

    return Writer(f"minigpt {runtime.precision}", runtime.precision, parameters, weight_bytes(model), write)


def hf_writer(counterpart: Counterpart, prompt: Tensor, runtime: Runtime) -> Writer:
    """Make the side of transformers' `generate`, with greedy decoding and its default cache."""
    model: Any = build_counterpart(counterpart).to(runtime.device, DTYPES[runtime.precision]).eval()
    seen = torch.ones_like(prompt)

    def write(count: int) -> Decoding:
        marks = _Marks()
        model.generate(
            prompt, attention_mask=seen, do_sample=False, max_new_tokens=count, pad_token_id=0, streamer=marks
        )
        return marks.decoding

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Writer(f"transformers {runtime.precision}", runtime.precision, parameters, weight_bytes(model), write)


class _Marks:
    """A streamer for transformers. It gets the prompt, then each new token on the CPU, when the device is done."""

    def __init__(self) -> None:
        self.decoding = Decoding()
        self.prompt_seen = False

    def put(self, value: Tensor) -> None:
        """Receive the prompt, or the next ids [B]."""
        if self.prompt_seen:
            self.decoding.mark()
        self.prompt_seen = True

    def end(self) -> None:
        """Do nothing at the end."""
