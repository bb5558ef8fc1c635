"""Write a run for other tools: `minigpt export`."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from minigpt.cli.arguments import PathText, Positional, as_run, parse
from minigpt.console import counted, loading, out, out_json, tell
from minigpt.errors import UserError


@dataclass(frozen=True)
class Export:
    """Write a run for other tools, or as one web page in which the model writes and explains itself.

    minigpt export runs/my
    minigpt export runs/my --out my-model --precision bf16
    minigpt export runs/my --to page
    minigpt export runs/my --to gguf --precision q8_0
    minigpt export runs/my --to onnx

    hf: a Hugging Face directory, which transformers loads without minigpt. The shape gpt2 is GPT-2 there, and modern is
    Qwen3 (without qk_norm: Llama); a run that mixes their fields cannot be written. If transformers is installed, it
    loads the directory, and its logits and ids are compared with minigpt's.

    gguf: one file for llama.cpp, and for Ollama, LM Studio and others that are built on it. The shapes are those of hf.
    The file is read back and compared with the run.

    onnx: a directory for onnxruntime, transformers.js (in a browser) and optimum: one graph with a cache of keys and
    values. The shapes are those of hf. Needs pip install 'minigpt[onnx]'. onnxruntime runs the graph, and its logits
    and greedy ids are compared with minigpt's.

    page: one HTML file that works offline in any browser, with weights, tokenizer and code inside. If node is
    installed, it runs the page's own code, and logits, ids and texts are compared with minigpt's.

    peft: only the adapter, if the run was fine-tuned with one: a directory for peft. Write the base with --to hf too.

    If a comparison fails, the command fails, and no file is left. The other formats merge an adapter with its base, and
    turn the integers of a quantised run into floats.
    """

    run: Positional[PathText]
    """A run directory or a checkpoint."""
    to: Literal["hf", "gguf", "onnx", "page", "peft"] = "hf"
    """What to write: hf, a directory for transformers; gguf, a file for llama.cpp; onnx, a directory for onnxruntime
    and transformers.js; page, an HTML file for a browser; peft, only a run's adapter."""
    out: PathText | None = None
    """The directory or file to write (default: RUN-hf, RUN-F16.gguf and the like, RUN-onnx, RUN.html or RUN-peft,
    next to the run)."""
    precision: Literal["fp32", "bf16", "fp16", "int8", "q8_0", "q4_0"] | None = None
    """Precision of the weights. hf: fp32 (the default), bf16 or fp16; gguf: fp16 (the default), fp32, bf16, q8_0 or
    q4_0 (8.5 and 4.5 bits); onnx: fp32 (the default), fp16 or int8; page: int8 (the default), fp16 or fp32; peft:
    fp32."""
    json: bool = False
    """Print one JSON object: run, path, architecture (gpt2, qwen3 or llama; not page), precision, weights (how many),
    bytes, difference (largest between the other tool's logits and minigpt's, for gguf between the file's and the run's;
    null if transformers, peft or node is not installed), same (gguf: share of the likeliest next tokens that are the
    run's)."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Export, argv, "export")
    precisions, write = TARGETS[args.to]
    if args.precision and args.precision not in precisions:
        others = " or ".join(f"--to {name}" for name, (known, _) in TARGETS.items() if args.precision in known)
        listed = " or ".join(filter(None, (", ".join(precisions[:-1]), precisions[-1])))
        raise UserError(f"--precision {args.precision} is for {others}; for --to {args.to} choose {listed}")
    loading()
    from minigpt.runs.load import load_run

    run = load_run(as_run(args.run, "export"), "cpu")
    done, line, hint = write(run, args.out, args.precision or precisions[0])
    if args.json:
        out_json({"run": args.run, **asdict(done), "path": str(done.path)})
        return 0
    out(line)
    if hint:
        tell(hint)
    return 0


def _huggingface(run: Any, path: str | None, precision: str) -> tuple[Any, str, str]:
    from minigpt.export import export_huggingface

    done = export_huggingface(run, path, precision)
    compared = "not compared: transformers is not installed"
    if done.difference is not None:
        compared = f"transformers' logits equal minigpt's within {done.difference:.1g}, its ids are equal"
    return done, f"{done.path}: {done.architecture}, {_size(done)}; {compared}", ""


def _gguf(run: Any, path: str | None, precision: str) -> tuple[Any, str, str]:
    from minigpt.export import export_gguf

    done = export_gguf(run, path, precision)
    compared = f"read back; the likeliest next token equals the run's in {done.same:.1%} of places"
    return done, f"{done.path}: {done.architecture}, {_size(done)}; {compared}", ""


def _onnx(run: Any, path: str | None, precision: str) -> tuple[Any, str, str]:
    from minigpt.export import export_onnx

    done = export_onnx(run, path, precision)
    compared = f"onnxruntime's logits equal minigpt's within {done.difference:.1g}, its greedy ids are equal"
    return done, f"{done.path}: {done.architecture}, {_size(done)}; {compared}", ""


def _page(run: Any, path: str | None, precision: str) -> tuple[Any, str, str]:
    from minigpt.export import export_page

    done = export_page(run, path, precision)
    compared = "not checked: node is not installed"
    if done.difference is not None:
        compared = f"its logits equal minigpt's within {done.difference:.1g}, its ids and texts are equal"
    return done, f"{done.path}: {_size(done)}; {compared}", f"open it in a browser: {done.path.resolve().as_uri()}"


def _peft(run: Any, path: str | None, precision: str) -> tuple[Any, str, str]:
    from minigpt.export import export_peft

    done = export_peft(run, path)
    compared = "not compared: peft or transformers is not installed"
    if done.difference is not None:
        compared = f"peft's logits equal minigpt's within {done.difference:.1g}"
    return done, f"{done.path}: an adapter for {done.architecture}, {_size(done)}; {compared}", ""


def _size(done: Any) -> str:
    return f"{counted(done.weights, 'weight')} in {done.precision}, {done.bytes / 1e6:,.2f} MB"


TARGETS = {
    "hf": (("fp32", "bf16", "fp16"), _huggingface),
    "gguf": (("fp16", "fp32", "bf16", "q8_0", "q4_0"), _gguf),
    "onnx": (("fp32", "fp16", "int8"), _onnx),
    "page": (("int8", "fp16", "fp32"), _page),
    "peft": (("fp32",), _peft),
}
"""For each format: its precisions, the default first, and the function that writes it: (run, out, precision) ->
(report, line, hint).
"""
