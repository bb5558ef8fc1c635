"""minigpt export."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from minigpt.cli.arguments import PathText, Positional, as_run, parse
from minigpt.console import counted, loading, out, out_json


@dataclass(frozen=True)
class Export:
    """Write a run as a Hugging Face directory, which transformers loads without minigpt.

    minigpt export runs/my
    minigpt export runs/my --out my-model --precision bf16

    The shapes gpt2 and modern have a twin there, GPT2LMHeadModel and Qwen3ForCausalLM; a run whose fields mix them has
    none. An adapter is merged, and the integers of a quantised run become numbers again. Where transformers is
    installed, it loads what was written, and logits and ids are compared with ours before the directory gets its name.
    """

    run: Positional[PathText]
    """A run directory or a checkpoint."""
    out: PathText | None = None
    """The directory to write (default: RUN-hf, beside the run)."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of the weights in the file."""
    json: bool = False
    """Print one JSON object: run, path, architecture (gpt2 or qwen3), precision, weights (how many), bytes,
    difference (largest between transformers' logits and ours; null where transformers is not installed)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Export, argv, "export")
    loading()
    from minigpt.export import export_huggingface
    from minigpt.runs.load import load_run

    done = export_huggingface(load_run(as_run(args.run, "export"), "cpu"), args.out, args.precision)
    report: dict[str, Any] = {"run": args.run, **asdict(done), "path": str(done.path)}
    if args.json:
        out_json(report)
        return 0
    compared = "not compared: transformers is not installed"
    if done.difference is not None:
        compared = f"transformers' logits are ours within {done.difference:.1g}, its ids are equal"
    size = f"{counted(done.weights, 'weight')} in {done.precision}, {done.bytes / 1e6:,.2f} MB"
    out(f"{done.path}: {done.architecture}, {size}; {compared}")
    return 0
