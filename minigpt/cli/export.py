"""minigpt export."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from minigpt.cli.arguments import PathText, Positional, as_run, parse
from minigpt.console import counted, loading, out, out_json
from minigpt.errors import ConfigError


@dataclass(frozen=True)
class Export:
    """Write a run in the format of another tool: transformers (hf) or llama.cpp (gguf).

    minigpt export runs/my
    minigpt export runs/my --out my-model --precision bf16
    minigpt export runs/my --to gguf
    minigpt export runs/my --to gguf --precision q8_0

    hf is a directory for transformers. gguf is one file for llama.cpp, and for Ollama, LM Studio and others that are
    made of it. The shapes gpt2 and modern have a twin there, GPT-2 and Qwen3 (modern without qk_norm: Llama); a run
    whose fields mix them has none. An adapter is merged, and the integers of a quantised run become numbers again. What
    was written is read back and compared with the run before it gets its name.
    """

    run: Positional[PathText]
    """A run directory or a checkpoint."""
    to: Literal["hf", "gguf"] = "hf"
    """The format: hf (a directory for transformers) or gguf (a file for llama.cpp)."""
    out: PathText | None = None
    """The directory or file to write (default: RUN-hf, or RUN-F16.gguf and the like, beside the run)."""
    precision: Literal["fp32", "bf16", "fp16", "q8_0", "q4_0"] | None = None
    """Of the weights in the file (default: hf fp32, gguf fp16). gguf alone: q8_0 and q4_0, of 8.5 and 4.5 bits."""
    json: bool = False
    """Print one JSON object: run, path, architecture (gpt2, qwen3 or llama), precision, weights (how many), bytes,
    difference (hf: the largest between transformers' logits and ours, null where transformers is not installed; gguf:
    the largest between the logits of what is in the file and the run's), same (gguf: share of the likeliest next tokens
    that are the run's)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Export, argv, "export")
    if args.to == "hf" and args.precision in ("q8_0", "q4_0"):
        raise ConfigError(f"precision: {args.precision} is of gguf files; add --to gguf, or choose fp32, bf16 or fp16")
    loading()
    from minigpt.export import export_gguf, export_huggingface
    from minigpt.runs.load import load_run

    run = load_run(as_run(args.run, "export"), "cpu")
    if args.to == "gguf":
        made = export_gguf(run, args.out, args.precision or "fp16")
        report: dict[str, Any] = {"run": args.run, **asdict(made), "path": str(made.path)}
        compared = f"read back, the likeliest next token is the run's in {made.same:.1%} of places"
    else:
        done = export_huggingface(run, args.out, args.precision or "fp32")
        report = {"run": args.run, **asdict(done), "path": str(done.path)}
        compared = "not compared: transformers is not installed"
        if done.difference is not None:
            compared = f"transformers' logits are ours within {done.difference:.1g}, its ids are equal"
    if args.json:
        out_json(report)
        return 0
    size = f"{counted(report['weights'], 'weight')} in {report['precision']}, {report['bytes'] / 1e6:,.2f} MB"
    out(f"{report['path']}: {report['architecture']}, {size}; {compared}")
    return 0
