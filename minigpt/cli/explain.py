"""Look inside a model: `minigpt explain`."""

import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigpt.cli.arguments import PathText, Positional, parse, refuse
from minigpt.console import SafeConsole, console, loading, out, out_json, progress_bars, tell
from minigpt.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rich.console import RenderableType

    from minigpt.runs.load import LoadedRun

_MOST = 256  # more tokens would not be legible on a page
_MOST_DATA = 1 << 17  # tokens of the validation text to score


@dataclass(frozen=True)
class Explain:
    """Look inside a model while it reads a text: one HTML page that needs no network, or numbers, or a walk-through.

    minigpt explain runs/my --prompt "Once upon a time"
    minigpt explain runs/my --prompt "Once upon a time" --step-by-step
    minigpt explain runs/my --prompt "Once upon a time" --svg attention.svg
    minigpt explain runs/my --over data

    The page shows surprise, next tokens, attention, kinds of heads, the logit lens and the residual stream.
    docs/explain.md says how to read each picture and what each key of --json holds.
    """

    run: Positional[PathText]
    """A run directory (its best checkpoint), a checkpoint, or an exported Hugging Face directory."""
    prompt: str | None = None
    """The text to read; - reads standard input (default: the run's sample prompt). If it is longer than the model's
    context, or than 256 tokens, only its last part is read. With --over data: a text of any length to look for in the
    training text (default: one that the model writes)."""
    step_by_step: bool = False
    """Follow one token through the network in the terminal, with the real numbers and shapes."""
    position: int = -1
    """With --step-by-step: which token, counted from 0; negative numbers count from the end."""
    over: Literal["prompt", "data", "training"] = "prompt"
    """What to look at: a prompt; the run's own data (loss by position and by frequency, surprises, neighbours in the
    embedding, what it knows word for word); or the kept checkpoints (how heads and samples changed)."""
    out: PathText | None = None
    """Where to write the page (default: plots/explain.html in the run)."""
    png: PathText | None = None
    """Draw --picture to this file instead of the page (pip install 'minigpt[plot]')."""
    svg: PathText | None = None
    """The same as SVG."""
    picture: Literal["attention", "surprise", "lens", "stream"] = "attention"
    """With --png or --svg: what to draw."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    json: bool = False
    """Print one JSON object instead of the page: format, run, step, model, ids, texts, loss, entropy, attention,
    attention_entropy, look_back, parts, stream_norm, written_norm, lens, vocabulary, heads; see docs/explain.md,
    which has the keys with --over data and --over training too."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Explain, argv, "explain")
    _check(args)
    loading()
    from minigpt.runs.load import load_run

    run = load_run(args.run, args.device)
    if args.over == "data":
        return _over_data(args, run)
    ids = _read(args, run)
    if args.over == "training":
        return _over_training(args, run, ids)
    if args.step_by_step:
        from minigpt.explanation.walk import walk

        _show(walk(run.model, run.tokenizer, ids, args.position))
        return 0
    from minigpt.explanation.analysis import explain

    explanation = explain(run.model, run.tokenizer, ids, run=run.name, step=run.step)
    if args.json:
        out_json(explanation)
    for path in (args.png, args.svg):
        if path:
            from minigpt.explanation.figures import draw_explanation

            out(str(draw_explanation(explanation, path, args.picture)))
    if not (args.json or args.png or args.svg):
        from minigpt.explanation.metrics import run_headline
        from minigpt.layout import RunFolder

        line = run_headline(RunFolder.of(run.path).path)
        page = _write_page(args, run, explanation, line)
        out(str(page))
        tell(f"open it in a browser: {page.resolve().as_uri()}")
        if line:
            tell(line)
    return 0


def _check(args: Explain) -> None:
    """Raises UserError for flags that do not go together."""
    from minigpt.explanation import drawable

    for suffix, path in ((".png", args.png), (".svg", args.svg)):
        if path is not None and Path(path).suffix.lower() != suffix:
            raise UserError(f"--{suffix[1:]} {path}: does not end in {suffix}")
        if path is not None:
            drawable(path)  # a missing library is reported before the model is loaded
    others = [name for name in ("step_by_step", "png", "svg", "out") if getattr(args, name)]
    if args.over != "prompt" and others:
        raise UserError(f"--{others[0].replace('_', '-')} is for a prompt; leave --over {args.over} out")
    if not args.step_by_step:
        refuse(args, ("position",), "only with --step-by-step; leave it out")
    if not (args.png or args.svg):
        refuse(args, ("picture",), "only with --png or --svg; leave it out")
    if args.step_by_step:
        refuse(args, ("png", "svg", "out"), "not with --step-by-step, which prints; leave one of them out")
    if args.out and (args.png or args.svg):
        raise UserError("--out is for the page, and --png and --svg draw instead of it; leave one of them out")
    if args.json and others:
        raise UserError(f"--json prints in place of --{others[0].replace('_', '-')}; give one of them")


def _prompt(args: Explain, run: "LoadedRun") -> str:
    """The prompt, cleaned as the training text was."""
    from minigpt.generation.text.prompts import typed_prompt

    prompt = run.config.train.sample_prompt if args.prompt is None else typed_prompt(args.prompt)
    return run.clean(prompt)


def _read(args: Explain, run: "LoadedRun") -> list[int]:
    """Ids of the prompt; only the last ones of a long prompt. Warnings say what is not read. Raises GenerationError if
    empty.
    """
    from minigpt.generation.text.prompts import encode_prompt

    ids = encode_prompt(_prompt(args, run), run.tokenizer, run.model.config.max_seq_len)
    if len(ids) > _MOST:
        warnings.warn(f"{len(ids)} tokens; only the last {_MOST} are read, since a page shows no more", stacklevel=2)
    return ids[-_MOST:]


def _write_page(args: Explain, run: "LoadedRun", explanation: dict[str, Any], note: str) -> Path:
    from minigpt.explanation.html import make_page
    from minigpt.files import write_text
    from minigpt.layout import RunFolder

    target = Path(args.out) if args.out else RunFolder.of(run.path).plot("explain.html")
    write_text(target, make_page(explanation, note), "choose another file with --out", parents=True)
    return target


def _over_data(args: Explain, run: "LoadedRun") -> int:
    from minigpt.explanation.dataset import survey
    from minigpt.explanation.tables import show_survey
    from minigpt.generation.text import generate_text

    splits = run.prepared().splits
    text = _prompt(args, run)
    if args.prompt is None:
        settings = {"max_new_tokens": 400, "temperature": 0.8, "stop_at_eos": False}
        text += str(generate_text(run.model, text, run.tokenizer, **settings))
    train, held_out = splits["train"].tokens, splits["val"].tokens[:_MOST_DATA]
    with progress_bars(console) as bar:
        bar("reading", 0, None)
        found = survey(run.model, run.tokenizer, train, held_out, text, partial(bar, "reading"))
    found |= {"run": run.name, "step": run.step}
    if args.json:
        out_json(found)
    else:
        _show(show_survey(found))
    return 0


def _over_training(args: Explain, run: "LoadedRun", ids: list[int]) -> int:
    from minigpt.explanation.over_time import timeline
    from minigpt.explanation.tables import show_timeline
    from minigpt.layout import RunFolder

    with progress_bars(console) as bar:
        bar("checkpoints", 0, None)
        found = timeline(RunFolder.of(run.path).path, run.tokenizer, ids, partial(bar, "checkpoints"))
    if args.json:
        out_json(found)
    else:
        _show(show_timeline(found, run.tokenizer))
    return 0


def _show(parts: "Iterable[RenderableType]") -> None:
    screen = SafeConsole()
    screen.width = min(100, screen.width) if screen.is_terminal else 100  # a file or a pipe has no width
    for part in parts:
        screen.print(part)
