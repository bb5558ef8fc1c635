"""minigpt generate."""

import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import tyro

from minigpt.cli.console import out_json, parse
from minigpt.errors import GenerationError


@dataclass(frozen=True)
class Generate:
    """Continue a prompt, streaming.

    minigpt generate runs/my --prompt "Once upon a time" --temperature 0.7
    cat start.txt | minigpt generate runs/my --prompt -

    Text may grow past the model's context: when that is full, the older half is dropped and the newer half read again.
    """

    run: tyro.conf.Positional[str]
    """A run directory, a checkpoint, or an exported Hugging Face directory."""
    prompt: str | None = None
    """The text to continue; - reads standard input (default: the run's sample prompt)."""
    prompt_file: str | None = None
    """A file that holds the prompt."""
    max_new_tokens: int | None = None
    """Tokens to add (default for this and the rest: the run's config, section generation)."""
    temperature: float | None = None
    """Divides the logits; 0 is greedy."""
    top_k: int | None = None
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float | None = None
    """Keep the fewest tokens whose probabilities sum to p."""
    num_samples: int | None = None
    """Continuations of the prompt."""
    seed: int | None = None
    """Of the sampling; sample i uses seed + i."""
    stop_at_eos: bool | None = None
    """End at the end-of-text token."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16", "int8", "auto"] = "fp32"
    """Of the weights: on a CPU a large model writes twice as fast in bf16, and some three times in int8, which changes
    its text a little; auto is bf16 there."""
    json: bool = False
    """Print one JSON object: run, step, prompt, samples, settings."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Generate, argv, "generate")
    prompt = _read_prompt(args)
    from minigpt.assemble import load_run
    from minigpt.config import load_config
    from minigpt.data.clean import clean_text
    from minigpt.decoding import prepare_decoding
    from minigpt.writing import stream_text

    names = {"max_new_tokens", "temperature", "top_k", "top_p", "num_samples", "seed", "stop_at_eos"}
    given = {f.name: getattr(args, f.name) for f in fields(args) if f.name in names}
    asked = {f"generation.{key}": value for key, value in given.items() if value is not None}
    load_config(None, asked)  # a wrong setting is told before the model is loaded
    run = load_run(args.run, args.device)
    prompt = run.config.train.sample_prompt if prompt is None else prompt
    prompt = clean_text(prompt, run.config.data.clean)  # as the training text was
    config = load_config(
        None, {f"generation.{k}": v for k, v in run.config.generation.model_dump().items()} | asked
    ).generation
    texts = [""] * config.num_samples
    stream = not args.json and config.num_samples == 1
    unseen = prompt  # written with the first token, so that a prompt that cannot be used prints nothing
    model = prepare_decoding(run.model, args.precision)
    for pieces in stream_text(model, run.tokenizer, prompt, config):
        texts = [text + piece for text, piece in zip(texts, pieces, strict=True)]
        if stream:
            sys.stdout.write(unseen + pieces[0])
            sys.stdout.flush()
            unseen = ""
    if args.json:
        settings = config.model_dump() | {"precision": args.precision}
        out_json({"run": str(run.path), "step": run.step, "prompt": prompt, "samples": texts, "settings": settings})
    elif stream:
        sys.stdout.write("\n")
    else:
        for number, text in enumerate(texts, 1):
            sys.stdout.write(f"--- {number} ---\n{prompt}{text}\n")
    return 0


def _read_prompt(args: Generate) -> str | None:
    if args.prompt is not None and args.prompt_file is not None:
        raise GenerationError("--prompt and --prompt-file exclude each other; give one")
    if args.prompt_file is not None:
        try:
            return Path(args.prompt_file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise GenerationError(f"{args.prompt_file}: cannot be read ({error}); give a UTF-8 text file") from None
    if args.prompt == "-":
        return sys.stdin.read()
    if args.prompt == "":
        raise GenerationError('the prompt is empty; give some text, for example --prompt "Once upon a time"')
    return args.prompt
