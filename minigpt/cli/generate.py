"""Continue a prompt: `minigpt generate`."""

import dataclasses
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

from minigpt.cli.arguments import PathText, Positional, parse, refuse, unreadable
from minigpt.config import GenerationConfig, load_config
from minigpt.config.presets import load_preset, save_preset
from minigpt.config.unused import unused_generation
from minigpt.console import loading, out_json, tell, whole_line_ends, write
from minigpt.errors import GenerationError
from minigpt.layout import RunFolder

SAMPLING = (
    "max_new_tokens",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "stop",
    "seed",
)
"""The generation settings that people use most."""


@dataclass(frozen=True)
class _Generate:
    """Continue a prompt, streaming.

    minigpt generate runs/my --prompt "Once upon a time" --temperature 0.7
    cat start.txt | minigpt generate runs/my --prompt -
    minigpt generate runs/my --prompts many.txt --out answers.jsonl --stop "." --max-new-tokens 50

    If a prompt is longer than the model's context, only its last part is read. The text may become longer than the
    context: when the context is full, its older half is dropped and the newer half is read again.
    """

    COMMON: ClassVar = (
        "prompt",
        *SAMPLING,
        "num_samples",
        "prompts",
        "out",
        "device",
        "precision",
        "json",
    )

    run: Positional[PathText]
    """A run directory, a checkpoint, or an exported Hugging Face directory."""
    prompt: str | None = None
    """The text to continue; - reads standard input (default: the run's sample prompt)."""
    prompt_file: PathText | None = None
    """A file that holds the prompt."""
    prompts: PathText | None = None
    """A file of prompts, one per line, or JSON with {"prompt": ..., "seed": ...}; answers are JSON lines."""
    out: PathText | None = None
    """With --prompts: the file for the answers, written at the end (default: standard output)."""
    batch_size: int = 16
    """With --prompts: how many prompts are continued together."""
    preset: str | None = None
    """Settings saved under this name; other flags override them."""
    save_preset: str | None = None
    """Save the settings given here under this name, in ~/.config/minigpt/generation.yaml."""
    draft: PathText | None = None
    """A smaller run with the same tokenizer that guesses ahead; the probabilities of the text do not change."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16", "int8", "int4", "auto"] = "fp32"
    """Precision of the weights. On a CPU a large model writes twice as fast in bf16, and about three times as fast in
    int8, which changes its text a little; int4 (for runs of minigpt quantize) changes more; auto is bf16 there."""
    json: bool = False
    """Print one JSON object: run, step, prompt, samples, reasons, settings, and with --logprobs tokens."""


def with_settings(base: type) -> type:
    """Add every setting of generation to a command's arguments, with its help; None means the run's own value."""
    return dataclasses.make_dataclass(
        base.__name__.lstrip("_"),
        [
            (name, info.annotation | None, dataclasses.field(default=None, metadata={"help": info.description}))  # pyright: ignore
            for name, info in GenerationConfig.model_fields.items()
        ],
        bases=(base,),
        frozen=True,
        namespace={"__doc__": base.__doc__},
    )


def asked_settings(args: Any) -> dict[str, Any]:
    """The settings of the preset and of the flags. Raises ConfigError, so that wrong ones are reported before the model
    loads; they are checked together with the run's own, which may need each other. A line names each flag that has no
    effect.
    """
    given = {name: getattr(args, name) for name in GenerationConfig.model_fields}
    given = {name: value for name, value in given.items() if value is not None}
    asked = (load_preset(args.preset) if args.preset else {}) | given
    own = RunFolder.of(args.run).config
    config = load_config(own if own.is_file() else None, {f"generation.{key}": value for key, value in asked.items()})
    for name, why in unused_generation(config.generation).items():
        if name in given:
            tell(f"--{name.replace('_', '-')}: no effect, since {why}")
    return asked


def load_draft(args: Any, run: Any) -> Any:
    """The model of --draft, or None. Raises GenerationError if its tokenizer is not the run's."""
    if args.draft is None:
        return None
    from minigpt.runs.load import load_run

    draft = load_run(args.draft, args.device)
    if draft.tokenizer.fingerprint != run.tokenizer.fingerprint:
        raise GenerationError(f"--draft {args.draft}: it has another tokenizer; train the draft on the same token ids")
    return draft.model


Generate = with_settings(_Generate)


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Generate, argv, "generate")
    if args.prompts is None:
        refuse(args, ("out", "batch_size"), "only with --prompts; leave it out")
        refuse(args, () if args.json else ("logprobs",), "only with --json or --prompts, which print them")
    else:
        refuse(args, ("json",), "not with --prompts, whose answers are JSON lines; leave it out")
    loading(quiet=True)
    prompt = _read_prompt(args)
    asked = asked_settings(args)
    records = None
    if args.prompts is not None:
        from minigpt.cli.prompts import asked_prompts

        records = asked_prompts(args.prompts, args.out, args.batch_size)
    if args.save_preset:
        save_preset(args.save_preset, asked)
    from minigpt.generation.fast.prepare import prepare_decoding
    from minigpt.runs.load import load_run

    run = load_run(args.run, args.device)
    settings = run.config.generation.model_dump() | asked
    config = load_config(None, {f"generation.{key}": value for key, value in settings.items()}).generation
    config = config.cleaned(run.clean)
    draft = load_draft(args, run)
    prepare_decoding(run.model, args.precision)
    if records is not None:
        from minigpt.cli.prompts import answer_all

        return answer_all(records, args.out, args.batch_size, run, config, draft)
    return _answer_one(args, prompt, run, config, draft)


def _answer_one(args: Any, prompt: str | None, run: Any, config: GenerationConfig, draft: Any) -> int:
    from minigpt.generation.text import Writing

    prompt = run.config.train.sample_prompt if prompt is None else prompt
    text = run.clean(str(prompt))  # as the training text was cleaned
    stream = not args.json and config.num_samples == 1 and config.best_of == 1
    writing = Writing(run.model, run.tokenizer, [text], config, draft=draft)
    unseen = text  # printed with the first token, so that a prompt that cannot be used prints nothing
    for piece in whole_line_ends(pieces[0] for pieces in writing):
        if stream:
            write(unseen + piece)
            sys.stdout.flush()
            unseen = ""
    samples = writing.completions[0]
    if args.json:
        found = {
            "run": str(run.path),
            "step": run.step,
            "prompt": text,
            "samples": [sample.text for sample in samples],
            "reasons": [sample.reason for sample in samples],
            "settings": config.model_dump() | {"precision": args.precision},
        }
        if config.logprobs is not None:
            found["tokens"] = [[dataclasses.asdict(token) for token in sample.logprobs] for sample in samples]
        out_json(found)
    elif stream:
        sys.stdout.write("\n")
    else:
        for number, sample in enumerate(samples, 1):
            score = "" if sample.score is None else f" (score {sample.score:.3f})"
            write(f"--- {number}{score} ---\n{text}{sample.text}\n")
    return 0


def _read_prompt(args: Any) -> str | None:
    ways = [f"--{field.name.replace('_', '-')}" for field in fields(_Generate) if field.name.startswith("prompt")]
    if sum(way is not None for way in (args.prompt, args.prompt_file, args.prompts)) > 1:
        raise GenerationError(f"{', '.join(ways)} exclude each other; give one")
    if args.prompt == "":
        raise GenerationError('the prompt is empty; give some text, for example --prompt "Once upon a time"')
    from minigpt.data.json_rows import form_of
    from minigpt.files import read_text
    from minigpt.generation.text.prompts import MOST, typed_prompt

    if args.prompt_file is None:
        return None if args.prompt is None else typed_prompt(args.prompt)
    try:
        text = read_text(args.prompt_file, MOST)
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(args.prompt_file, error) from None
    if form_of(Path(args.prompt_file).name, text):
        hint = f"read its prompts with --prompts; or continue it as it is: --prompt - < {args.prompt_file}"
        raise GenerationError(f"{args.prompt_file}: holds JSON; {hint}")
    return text
