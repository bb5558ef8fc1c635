"""Import a model of another program: `minigpt import`."""

import shlex
from dataclasses import asdict, dataclass
from typing import Any

from minigpt.cli.arguments import PathText, Positional, parse
from minigpt.console import counted, loading, out, out_json


@dataclass(frozen=True)
class Import:
    """Import a model that another program made, as a run: to evaluate, explain, fine-tune or chat with it.

    minigpt import SmolLM2-135M --out runs/smol
    minigpt import model.gguf
    minigpt import out-shakespeare-char/ckpt.pt --tokenizer data/shakespeare_char/input.txt
    minigpt import stories15M.bin --tokenizer tokenizer.bin

    It reads Hugging Face directories (GPT-2, Qwen3, Llama and models of the same architecture), GGUF files of these
    (fp32, fp16, bf16, q8_0, q4_0), nanoGPT's ckpt.pt, and llama2.c's .bin. A model with a part that minigpt does not
    have is refused; the error names the part. No code in a file is run. To train further: minigpt finetune RUN my.txt.
    """

    source: Positional[PathText]
    """The model: a file, or a directory."""
    out: PathText | None = None
    """The run to write (default: runs/ and the name of the file or directory)."""
    tokenizer: PathText | None = None
    """A tokenizer.json, llama2.c's tokenizer.bin or, for a nanoGPT model of characters, the text it was trained on
    (default: the model's own; for 50257 or 50304 tokens GPT-2's)."""
    json: bool = False
    """Print one JSON object: source, path, kind (huggingface, gguf, nanogpt or llama2.c), weights (how many), tokenizer
    (its kind), vocab_size."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Import, argv, "import")
    loading()
    from minigpt.runs.importing import import_model

    done = import_model(args.source, args.out, args.tokenizer)
    report: dict[str, Any] = {"source": args.source, **asdict(done), "path": str(done.path)}
    if args.json:
        out_json(report)
        return 0
    out(
        f"{done.path}: {counted(done.weights, 'weight')} from {done.kind}, {done.tokenizer} tokenizer of "
        f"{done.vocab_size:,} ids; try: minigpt generate {shlex.quote(done.path.as_posix())}"
    )
    return 0
