"""Measure a model on a text or on records: `minigpt eval`."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from minigpt.cli.arguments import PathText, Positional, parse, refuse
from minigpt.console import Lines, console, counted, loading, out_json, progress_bars, tell
from minigpt.errors import UserError
from minigpt.files import write_text
from minigpt.layout import RunFolder

if TYPE_CHECKING:
    from minigpt.data import Prepared
    from minigpt.evals import Adaptation
    from minigpt.evals.report import Report
    from minigpt.runs.load import LoadedRun

_FOR_TASKS = ("include_path", "num_fewshot", "limit")
_ADAPTING = ("adapt_rate", "cache_tokens", "cache_share", "cache_sharpness")
_FOR_TEXTS = ("data", "split", "context", "stride", "ask", "save", "fit_temperature", "adapt", "ensemble", *_ADAPTING)
_NOT_RECORDS = ("context", "stride", "batch_size", "save", "fit_temperature", "adapt", "ensemble")


@dataclass(frozen=True)
class Eval:
    """Measure a model exactly over a whole split: loss, perplexity, bits per byte; and compare with simpler models.

    minigpt eval runs/my
    minigpt eval runs/my --stride 32
    minigpt eval runs/my --data other.txt --json
    minigpt eval runs/answers
    minigpt eval runs/my --data questions.jsonl
    minigpt eval runs/my --fit-temperature
    minigpt eval runs/my --adapt both
    minigpt eval runs/my --ensemble runs/small,runs/large
    minigpt eval runs/my --tasks lambada_openai,mine.yaml

    By default, windows of the model's full context follow each other without overlap, as at the end of training. A
    smaller stride gives each token more context: the loss is lower, and the evaluation takes longer. Compare bits per
    byte between tokenizers; word perplexity counts words as WikiText does. The interval is a 95 % bootstrap interval
    over blocks of text.

    --fit-temperature divides the logits by the number that gives the smallest loss on the run's validation split, and
    saves this number with the run (temperature.json). Each later evaluation of the checkpoint then also prints its
    scores at this temperature. Generation does not use it.

    --adapt scores the text a second time, and lets the model learn from each window after it is scored: by a step of
    gradient descent (dynamic), by giving more probability to words that followed similar places (cache), or both.
    Compare such scores only with other scores of this kind. The run itself does not change.

    For records (.jsonl; a fine-tuned run's own, or --data), eval reports the loss of the expected answers, how many
    the model writes exactly, and a table of prompts, expected answers and the model's answers.

    --tasks evaluates on tasks of lm-evaluation-harness instead (pip install 'minigpt[lm-eval]'). A task that is a YAML
    file with local data needs no network.
    """

    run: Positional[PathText]
    """A run directory (its best checkpoint), a checkpoint, or an exported Hugging Face directory."""
    data: PathText | None = None
    """Other data to evaluate on: a named source or a file, split as for training (default: the run's own)."""
    split: Literal["val", "test", "train"] = "val"
    """Which part of the data. Simpler models are fitted on train, so train itself is not compared with them."""
    context: int | None = None
    """Tokens in a window (default: the model's max_seq_len)."""
    stride: int | None = None
    """Tokens between the starts of windows, at most the context. Each window reads context - stride tokens before the
    tokens that it scores (default: the context, no overlap)."""
    batch_size: int | None = None
    """Windows at a time; only speed and memory depend on it (default: by memory)."""
    ask: int | None = None
    """Records: the most answers to generate (default: 200); 0 computes only the loss."""
    tasks: str | None = None
    """Tasks of lm-evaluation-harness, separated by commas: names or YAML files. They may run Python code."""
    include_path: PathText | None = None
    """Tasks: a folder of YAML files; --tasks can use the names of their tasks."""
    num_fewshot: int | None = None
    """Tasks: solved examples before each question (default: as the task says)."""
    limit: int | None = None
    """Tasks: most documents per task."""
    device: str = "auto"
    """auto, cpu, cuda or mps."""
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the matrix products. If a run trained in another precision, its val_loss may differ by 0.001."""
    save: bool = False
    """Write the scores to eval.json in the run, from which minigpt plot reads the scores of simpler models."""
    fit_temperature: bool = False
    """Fit the softmax temperature on the run's validation split and save it; takes two or three times as long."""
    adapt: Literal["dynamic", "cache", "both"] | None = None
    """Score again with a model that learns from the text, window by window; not comparable with other scores."""
    adapt_rate: float | None = None
    """dynamic: root mean square of a step's change to the weights (default: 1e-4)."""
    cache_tokens: int | None = None
    """cache: how many of the latest positions are kept (default: 2000)."""
    cache_share: float | None = None
    """cache: its weight in the probability (default: 0.1)."""
    cache_sharpness: float | None = None
    """cache: the cosine of two states is multiplied by this; a large number favours similar positions (default: 20)."""
    ensemble: tuple[PathText, ...] = ()
    """Runs with the same tokenizer, separated by commas or spaces: score again with the mean of the probabilities of
    this run and these runs."""
    json: bool = False
    """Print one JSON object: loss (nats/token), perplexity, bits_per_byte, word_perplexity, tokens, bytes, words,
    confidence_interval ({loss, bits_per_byte}: [low, high], or null), floors (bits per byte: uniform, unigram,
    five_gram, xz; for stories entropy and surprisal), split, context, stride, checkpoint, step, data, at_temperature
    (null, or the first four again, temperature and fitted_on), adapted (null, or the first four again, method, category
    and the settings: rate, cache_tokens, cache_share, cache_sharpness), ensemble (null, or the first four again, and
    runs). For records: loss, perplexity, exact_match, records, tokens, answers ([{prompt, expected, got, exact}]),
    split, checkpoint, step, data. For tasks: the harness' results, versions, n-shot and n-samples; lm_eval (its
    version), checkpoint, step."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, _ = parse(Eval, argv, "eval")
    keeps = "--save" if args.save else "--fit-temperature" if args.fit_temperature else ""
    if keeps and (args.data is not None or args.split != "val"):
        raise UserError(f"{keeps} is for the run's own validation split; leave --data and --split out")
    if keeps and args.context is not None:
        raise UserError(f"{keeps} is for the model's whole context; leave --context out")
    if keeps and (run := RunFolder.of(args.run).path) != Path(args.run):
        raise UserError(f"{keeps} is for the run's best checkpoint; name the run: minigpt eval {run} {keeps}")
    _check_flags(args)
    if args.tasks is not None:
        os.environ.setdefault("TQDM_DISABLE", "1")  # read when torch imports tqdm; we show our own bar
    loading()
    from minigpt.cli.answers import report_records
    from minigpt.cli.extra_scores import extra_scores, fit, load_members, show_extra_scores
    from minigpt.cli.tasks import report_tasks
    from minigpt.evals import scores_records
    from minigpt.runs.load import load_run

    run = load_run(args.run, args.device, args.precision)
    if args.tasks is not None:
        settings = {name: getattr(args, name) for name in (*_FOR_TASKS, "batch_size")}
        report_tasks(run, args.run, args.tasks, args.json, **settings)
        return 0
    if scores_records(run, args.data):
        refuse(args, _NOT_RECORDS, "for a text, not for records; leave it out")
        report_records(run, args.run, args.data, args.split, args.ask, args.json)
        return 0
    if args.ask is not None:
        raise UserError("--ask is for records (.jsonl), not for a text; leave it out")
    how, prepared = _adaptation(args), _prepared(args, run)
    members = load_members(run, args.ensemble, args.context, args.device, args.precision)
    report = _evaluate(args, run, prepared)
    if args.fit_temperature:
        fit(run, prepared, report, args.batch_size)
    others = extra_scores(run, report, partial(_evaluate, args, run, prepared), how, members)
    if args.json:
        out_json({**report, **others})
    else:
        _show(report, args.run)
        show_extra_scores(others)
    if args.save:  # last, so that the scores are shown if the file cannot be written
        _save(report, Path(args.run))
    return 0


def _check_flags(args: Eval) -> None:
    """Raise UserError for flags that belong to another kind of evaluation."""
    if args.tasks is None:
        refuse(args, _FOR_TASKS, "only with --tasks")
    else:
        refuse(args, _FOR_TEXTS, "not with --tasks; leave it out")
    if args.adapt not in ("dynamic", "both"):
        refuse(args, _ADAPTING[:1], "only with --adapt dynamic or both")
    if args.adapt not in ("cache", "both"):
        refuse(args, _ADAPTING[1:], "only with --adapt cache or both")


def _adaptation(args: Eval) -> "Adaptation | None":
    from minigpt.evals import Adaptation

    if args.adapt is None:
        return None
    named = {"rate": args.adapt_rate, **{name: getattr(args, name) for name in _ADAPTING[1:]}}
    return Adaptation(args.adapt, **{name: value for name, value in named.items() if value is not None})


def _prepared(args: Eval, run: "LoadedRun") -> "Prepared":
    from minigpt.runs.data import check_known, prepare_data

    config = run.config
    if args.data is None:
        prepared = run.prepared()
    else:
        config = config.changed(data={"source": args.data})
        prepared = prepare_data(config, run.tokenizer)
    if args.split in prepared.splits and (caveat := check_known(config, run.tokenizer, prepared, [args.split])):
        tell(caveat)
    return prepared


def _evaluate(args: Eval, run: "LoadedRun", prepared: "Prepared", label: str = "evaluating", **how: Any) -> "Report":
    from minigpt.evals import evaluate_run

    with progress_bars(console) as bar:
        return evaluate_run(
            run,
            prepared=prepared,
            split=args.split,
            context=args.context,
            stride=args.stride,
            batch_size=args.batch_size,
            progress=partial(bar, label),
            **how,
        )


def _save(report: Mapping[str, Any], asked: Path) -> None:
    write_text(RunFolder.of(asked).evaluation, json.dumps(report, indent=2) + "\n", "leave --save out")


def _show(report: "Report", name: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    from minigpt.evals.report import report_headline

    screen = Lines(highlight=False, markup=True)
    screen.print(
        f"[bold]{escape(name)}[/bold] on {escape(report['data'])}: {counted(report['tokens'], 'token')}, "
        f"{counted(report['bytes'], 'byte')}, {counted(report['words'], 'word')}; context {report['context']:,}\n"
        f"{report_headline(report)}\n"
    )
    for rows in (_figures(report), _scale(report)):
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 3, 0, 0))
        table.add_column(no_wrap=True, min_width=26)
        table.add_column(no_wrap=True, justify="right", min_width=10)
        table.add_column(no_wrap=True)
        for row in rows:
            table.add_row(*row)
        screen.print(table)
        screen.print()
    screen.print(sentence(report), markup=False)


def _figures(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    interval = report["confidence_interval"] or {}

    def between(key: str) -> str:
        return "[dim]95 % in {:.4f} to {:.4f}[/dim]".format(*interval[key]) if key in interval else ""

    def large(value: float | None) -> str:
        return "over 10^300" if value is None else f"{value:,.2f}"

    return [
        ("loss, nats per token", f"{report['loss']:.4f}", between("loss")),
        ("perplexity", large(report["perplexity"]), ""),
        ("bits per byte", f"{report['bits_per_byte']:.4f}", between("bits_per_byte")),
        ("word perplexity", large(report["word_perplexity"]) if report["words"] else "no words", ""),
    ]


def _scale(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The model among the floors, the worst first, each with a bar."""
    from minigpt.evals.report import FLOOR_NAMES

    levels = {**{FLOOR_NAMES.get(k, k): v for k, v in report["floors"].items()}, "this model": report["bits_per_byte"]}
    longest = max(levels.values())
    rows = [("[dim]on the same text[/dim]", "[dim]bits/byte[/dim]", "")]
    for name, level in sorted(levels.items(), key=lambda item: -item[1]):
        style = "bold green" if name == "this model" else "dim"
        bar = "█" * max(1, round(24 * level / longest))
        rows.append((f"[{style}]{name}[/]", f"[{style}]{level:.4f}[/]", f"[{style}]{bar}[/]"))
    return rows


def sentence(report: Mapping[str, Any]) -> str:
    """The result in plain words."""
    bits, floors = report["bits_per_byte"], report["floors"]

    def gap(floor: str, name: str) -> str:
        less = floors[floor] - bits
        return f"{abs(less):.3f} {'fewer' if less >= 0 else 'more'} than {name} ({floors[floor]:.3f})"

    parts = [f"The model needs {bits:.3f} bits for a byte of this text"]
    if "five_gram" in floors:
        parts.append(gap("five_gram", "a 5-gram model"))
    if "surprisal" in floors:
        parts.append(gap("surprisal", "the grammar that wrote it") + ", which no model can beat in the long run")
    return "; ".join(parts) + "."
