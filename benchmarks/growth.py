"""Measure how the time of a step grows with parameters (1 M to 124 M) and with context (64 to 2048).

    python benchmarks/growth.py --out docs/growth.svg

Every point is the median of some optimizer steps (AdamW) on random ids, not compiled, in the precision and with the
attention kernel that `minigpt train` would use here. The compute line is the FLOPs of a step divided by the speed of a
large matrix product in the same precision, measured in the same process: no step can be faster. The exponent of a curve
is the slope of a straight line through its logarithms.
"""

import argparse
import json
import math
import platform
from pathlib import Path
from statistics import median

import numpy as np
from matplotlib.figure import Figure

from minigpt.config import RunConfig, validate
from minigpt.machine.bench.timing import stopwatch
from minigpt.machine.bench.train import our_side, random_batches
from minigpt.model import GPT
from minigpt.model.cost import flops_per_token, parameter_table
from minigpt.runtime.autotune import choose
from minigpt.runtime.device import make_runtime, peak_flops

WIDTHS = {128: 4, 192: 4, 256: 6, 384: 6, 512: 8, 640: 10, 768: 12}  # embed_dim: num_layers; 0.8 M to 85 M + head
CONTEXTS = (64, 128, 256, 512, 1024, 2048)
TOKENS = 2048  # per step, for every shape


def measure(config: RunConfig, steps: int) -> dict[str, float]:
    """Seconds per step of one shape, and its compute line."""
    runtime = make_runtime()
    choice = choose(config.model, runtime, "off", config.train.batch_size, steps, lambda _: None)
    model = GPT(config.model)
    model.use_attention(choice.attention)
    side = our_side(model, config, runtime, random_batches(config, runtime.device))
    side.step()
    seconds = median(stopwatch(side.step) for _ in range(steps))
    line = flops_per_token(config.model) * TOKENS / peak_flops(str(runtime.device), runtime.precision)
    row = {
        "parameters": parameter_table(config.model)["total"],
        "context": config.model.max_seq_len,
        "seconds": seconds,
        "compute_line": line,
        "mfu": line / seconds,
        "attention": choice.attention,
        "precision": runtime.precision,
    }
    print(json.dumps({k: round(v, 5) if isinstance(v, float) else v for k, v in row.items()}), flush=True)
    return row


def shape(width: int, layers: int, context: int, vocab_size: int) -> RunConfig:
    """A model of the default architecture, with heads of 64."""
    model = {"embed_dim": width, "num_layers": layers, "num_heads": width // 64, "max_seq_len": context}
    return validate({"model": model | {"vocab_size": vocab_size}, "train": {"batch_size": TOKENS // context},
                     "optimizer": {"kind": "adamw"}})  # fmt: skip


def exponent(rows: list[dict[str, float]], key: str, value: str = "seconds") -> float:
    """Slope of log value over log key."""
    return float(np.polyfit([math.log(row[key]) for row in rows], [math.log(row[value]) for row in rows], 1)[0])


def draw(by_size: list[dict[str, float]], by_context: list[dict[str, float]], out: Path) -> None:
    """Both curves with their compute lines."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = ((by_size, "parameters", "parameters (context 256)"), (by_context, "context", "context (6 layers, 384)"))
    for axes, (rows, key, label) in zip(figure.subplots(1, 2), panels, strict=True):
        x = [row[key] for row in rows]
        axes.loglog(x, [row["seconds"] for row in rows], "o-", color="#0072b2", label="a step, measured")
        axes.loglog(x, [row["compute_line"] for row in rows], "--", color="#767676", label="its FLOPs at full speed")
        axes.set(xlabel=label, ylabel=f"seconds per step of {TOKENS:,} tokens")
        axes.set_title(f"time ~ {key}^{exponent(rows, key):.2f}", loc="left")
        axes.grid(visible=True, which="both", color="#e8e8e8")
        axes.legend(frameon=False)
    figure.savefig(out)


def main() -> None:
    """Measure all sizes, fit the growth, print a table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth.svg"))
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    print(platform.processor() or platform.machine())
    by_size = [measure(shape(width, layers, 256, 8192), args.steps) for width, layers in WIDTHS.items()]
    by_size.append(measure(shape(768, 12, 256, 50257), args.steps))  # GPT-2's size
    by_context = [measure(shape(384, 6, context, 8192), args.steps) for context in CONTEXTS]
    for rows, key in ((by_size, "parameters"), (by_context, "context")):
        print(
            f"seconds ~ {key}^{exponent(rows, key):.3f}; the compute line ~ {exponent(rows, key, 'compute_line'):.3f}"
        )
    draw(by_size, by_context, args.out)


if __name__ == "__main__":
    main()
