"""Measure speed: `minigpt bench train | generate | tokenizer | data`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.markup import escape

from minigpt.cli.arguments import PathText, Positional, parse, refuse, with_word
from minigpt.config import RunConfig, find_recipe, load_config
from minigpt.console import SafeConsole, console, counted, loading, out, out_json
from minigpt.errors import ConfigError, UserError, nearest
from minigpt.layout import RunFolder

if TYPE_CHECKING:
    from minigpt.model import GPT

USAGE = """minigpt bench: how fast minigpt is here, compared with this machine's limits and with other tools

usage: minigpt bench train|generate|tokenizer|data [...]        each with --help

  minigpt bench train shakespeare-char-cpu --vs hf
  minigpt bench generate runs/my --precision bf16 --profile trace.json.gz
  minigpt bench tokenizer my.txt
  minigpt bench data my.txt --tokenizer.kind bpe
"""


@dataclass(frozen=True)
class Train:
    """Time optimizer steps of a recipe's shape, on random ids: no data is read.

    minigpt bench train shakespeare-char-cpu
    minigpt bench train --model.num-layers 6 --train.batch-size 16 --train.precision bf16 --vs hf
    minigpt bench train runs/my --profile trace.json.gz

    If the vocabulary is not set, it is that of the tokenizer's kind (char: 65). Each step is timed alone; the
    report has the median. MFU is the share of the speed of a large matrix product here, in the precision used.
    """

    recipe: Positional[PathText | None] = None
    """A recipe, or a run directory for its config (default: the default shape)."""
    steps: int = 10
    """Timed steps; in a comparison, the timed steps of each round."""
    warmup: int = 3
    """Untimed steps before the timed ones. The time of the very first step is reported alone, because it compiles."""
    rounds: int = 3
    """How often each side is timed, in turn; once if nothing is compared."""
    vs: Literal["hf"] | None = None
    """hf: compare with the same shape in Hugging Face transformers, eager in fp32 and compiled with bf16, on the same
    batch and AdamW."""
    profile: PathText | None = None
    """Write a trace of two of our steps, .json or .json.gz, for ui.perfetto.dev, and show where the time goes."""
    json: bool = False
    """Print one JSON object: model, batch_size, micro_batch_size, tokens_per_step, flops_per_token, device,
    device_name, threads, ceilings_gflops, peak_memory_bytes (ours; on a CPU the whole process), steps, warmup, rounds,
    sides [name, precision, compiled, parameters, ms_per_step [median, q1, q3, min, max], tokens_per_second,
    gflops_per_second, mfu, first_step_seconds, ratio (our speed / theirs)], notes, profile [file, groups,
    operations [name, group, share, ms, calls]] (or null)."""


@dataclass(frozen=True)
class Generate:
    """Time greedy generation from random ids: the first token, the others, and the share of the memory's limit.

    minigpt bench generate shakespeare-char --new-tokens 200
    minigpt bench generate runs/my --precision bf16 --vs hf

    A recipe has random weights, which are as fast as trained ones. The bound is the time to read all matrices once
    from memory; a model that fits into the processor's caches can be faster.
    """

    what: Positional[PathText | None] = None
    """A recipe, or a run, a checkpoint or a Hugging Face directory (default: the default shape)."""
    prompt_tokens: int = 16
    """Number of ids in the prompt."""
    new_tokens: int | None = None
    """Tokens to add (default: 64, or fewer if the context has no more room)."""
    batch_size: int = 1
    """Sequences at a time."""
    precision: Literal["fp32", "bf16", "int8"] = "fp32"
    """Precision of the weights, as in minigpt generate --precision; int8 on a CPU."""
    rounds: int = 3
    """How often each side generates, in turn."""
    vs: Literal["hf"] | None = None
    """hf: compare with the generate of Hugging Face transformers on the same shape, in fp32 and bf16."""
    profile: PathText | None = None
    """Write a trace of 16 of our tokens, .json or .json.gz, for ui.perfetto.dev, and show where the time goes."""
    json: bool = False
    """Print one JSON object: model, source (or null), prompt_tokens, new_tokens, batch_size, device, device_name,
    threads, bandwidth_gb_per_second, peak_memory_bytes (ours; on a CPU the whole process), rounds, sides [name,
    precision, parameters, weight_bytes, ms_to_first_token [median, q1, q3, min, max], ms_per_token [median, q1, q3,
    min, max], tokens_per_second, bound_ms_per_token, share_of_bound, ratio (our speed / theirs)], notes, profile [file,
    groups, operations [name, group, share, ms, calls]] (or null)."""


@dataclass(frozen=True)
class Tokenizer:
    """Time our BPE trainer next to Rust's (Hugging Face tokenizers and rustbpe, if installed), and our encoding next to
    tiktoken's with the same merges.

    minigpt bench tokenizer my.txt --vocab-size 16384

    Rust's trainers use all cores, the others one; with RAYON_NUM_THREADS=1 all use one.
    """

    file: Positional[PathText] = PathText("stories")
    """A text, read into memory."""
    vocab_size: int = 8192
    """Ids to learn; if a small text gives fewer, all sides learn that many."""
    pattern: Literal["gpt2", "gpt4", "gpt4o"] = "gpt4"
    """How text is split before merging."""
    rounds: int = 3
    """How often each side is timed, in turn."""
    json: bool = False
    """Print one JSON object: source, bytes, vocab_size, pattern, rounds, cores, rayon_threads, training [name, seconds
    [median, q1, q3, min, max], ratio (our speed / theirs)], encoding [name, mb_per_second [median, q1, q3, min, max],
    ratio (our speed / theirs)], same_merges (as Hugging Face's; null: not installed), same_ids (as tiktoken's),
    notes."""


@dataclass(frozen=True)
class Data:
    """Time how fast a text becomes token files, and token files become batches.

    minigpt bench data my.txt
    minigpt bench data my.txt --tokenizer.kind bpe --train.batch-size 64

    The tokenizer is made before the timing starts; all files are written into a temporary directory.
    """

    file: Positional[PathText | None] = None
    """A text (default: stories)."""
    rounds: int = 3
    """How often the text is prepared."""
    json: bool = False
    """Print one JSON object: source, bytes, tokens, tokenizer [kind, vocab_size], rounds, prepare [seconds [median, q1,
    q3, min, max], mb_per_second, tokens_per_second], batches [batch_size, seq_len, microseconds_per_batch [median, q1,
    q3, min, max], batches_per_second, tokens_per_second]."""


def main(argv: list[str]) -> int:
    """Run the command; the exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        out(USAGE)
        return 0
    subject, words = argv[0], argv[1:]
    if subject not in SUBJECTS:
        raise UserError(f"bench {subject}: no such benchmark; {nearest(subject, SUBJECTS)}")
    kind, measure, show = SUBJECTS[subject]
    args, overrides = parse(kind, words, f"bench {subject}", with_config=kind is not Tokenizer)
    if foreign := [path for path in overrides if not path.startswith(READ[subject])]:
        raise ConfigError([f"{path}: has no effect on minigpt bench {subject}; leave it out" for path in foreign])
    if isinstance(args, Train) and not args.vs and args.rounds != 1:
        refuse(args, ("rounds",), "only with --vs hf; give --steps")
    for name, least in LEAST.items():
        if (value := getattr(args, name, None)) is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} {value} measures nothing; give {least} or more")
    loading()
    with console.status("starting") as status:
        report = measure(args, overrides, lambda what: status.update(escape(what)))
    if args.json:
        out_json(report)
    else:
        show(report)
    return 0


READ: dict[str, tuple[str, ...]] = {
    "train": (
        "model.", "tokenizer.", "optimizer.", "train.batch_size", "train.micro_batch_size", "train.grad_clip",
        "train.device", "train.precision", "train.compile", "train.seed",
    ),
    "generate": ("model.", "tokenizer.", "train.device"),
    "tokenizer": (),
    "data": ("data.", "tokenizer.", "model.max_seq_len", "train.batch_size", "train.seed"),
}  # fmt: skip
"""The settings that each benchmark reads, or the beginnings of their names."""
LEAST = {"steps": 1, "warmup": 0, "rounds": 1, "prompt_tokens": 1, "new_tokens": 2, "batch_size": 1}
Tell = Callable[[str], None]


def _train(args: Train, overrides: dict[str, Any], tell: Tell) -> Mapping[str, Any]:
    config = _config(args.recipe, overrides)
    from minigpt.machine.bench.train import bench_train

    return bench_train(
        config,
        steps=args.steps,
        warmup=args.warmup,
        rounds=args.rounds,
        vs_hf=args.vs == "hf",
        profile=Path(args.profile) if args.profile else None,
        tell=tell,
    )


def _generate(args: Generate, overrides: dict[str, Any], tell: Tell) -> Mapping[str, Any]:
    model = _model(args.what, overrides)
    from minigpt.machine.bench.generate import bench_generate

    return bench_generate(
        model,
        prompt_tokens=args.prompt_tokens,
        new_tokens=args.new_tokens,
        batch_size=args.batch_size,
        precision=args.precision,
        rounds=args.rounds,
        vs_hf=args.vs == "hf",
        profile=Path(args.profile) if args.profile else None,
        tell=tell,
    )


def _tokenizer(args: Tokenizer, _: dict[str, Any], tell: Tell) -> Mapping[str, Any]:
    from minigpt.data import text_chunks
    from minigpt.machine.bench.tokenizer import bench_tokenizer

    text = "".join(text_chunks(args.file, RunConfig().data, None))
    return {"source": args.file, **bench_tokenizer(text, args.vocab_size, args.pattern, args.rounds, tell)}


def _data(args: Data, overrides: dict[str, Any], tell: Tell) -> Mapping[str, Any]:
    config = load_config(None, with_word(overrides, "data.source", args.file))
    from minigpt.machine.bench.data import bench_data

    return bench_data(config, args.rounds, tell)


def _config(word: str | None, overrides: dict[str, Any]) -> RunConfig:
    """The config of a recipe, a run directory or nothing, and the flags."""
    if word and (run := RunFolder(Path(word))).is_run:
        word = str(run.config)
    return load_config(str(find_recipe(word)) if word else None, overrides)


def _model(word: str | None, overrides: dict[str, Any]) -> "GPT":
    """The model of a directory, or of a recipe's shape with random weights, on the device."""
    trained = word is not None and Path(word).is_dir()
    if trained and (foreign := [path for path in overrides if path != "train.device"]):
        raise ConfigError([f"{path}: {word} has a shape of its own; leave this out" for path in foreign])
    config = load_config(None, overrides) if trained else _config(word, overrides)
    from minigpt.machine.bench.shape import with_vocabulary
    from minigpt.model import GPT
    from minigpt.runtime.device import pick_device

    device = pick_device(config.train.device)
    if trained:
        return GPT.from_pretrained(str(word), str(device))
    return GPT(with_vocabulary(config).model).to(device)


def _show_train(report: Mapping[str, Any]) -> None:
    shape = report["model"]
    out(
        f"{_layers(shape)}; {report['batch_size']} x {shape['max_seq_len']} tokens per step, "
        f"{counted(report['micro_batch_size'], 'sequence')} at a time; {_place(report)}\n"
    )
    rows = [
        (
            side["name"],
            *_spread(side["ms_per_step"]),
            f"{side['tokens_per_second']:,.0f}",
            f"{side['gflops_per_second']:,.1f}",
            f"{side['mfu']:.1%}",
            f"{side['first_step_seconds']:.2f}",
            _ratio(side["ratio"]),
        )
        for side in report["sides"]
    ]
    _table(("", "ms/step", "quartiles", "tokens/s", "GFLOP/s", "MFU", "first step, s", "ours/theirs"), rows)
    ceilings = ", ".join(f"{name} {value:,.0f} GFLOP/s" for name, value in report["ceilings_gflops"].items())
    out(f"\nceilings, measured now: {ceilings}; {_memory(report)}")
    _show_rest(report)


def _show_generate(report: Mapping[str, Any]) -> None:
    out(
        f"{report['source'] or 'random weights'}: {_layers(report['model'])}; {report['batch_size']} x "
        f"({report['prompt_tokens']} + {report['new_tokens']}) tokens; {_place(report)}\n"
    )
    rows = [
        (
            side["name"],
            f"{side['ms_to_first_token']['median']:,.2f}",
            *_spread(side["ms_per_token"]),
            f"{side['tokens_per_second']:,.0f}",
            f"{side['bound_ms_per_token']:,.3f}",
            f"{side['share_of_bound']:.1%}",
            _ratio(side["ratio"]),
        )
        for side in report["sides"]
    ]
    heads = ("", "first token, ms", "ms/token", "quartiles", "tokens/s", "bound, ms", "of bound", "ours/theirs")
    _table(heads, rows)
    out(f"\nreading memory, measured now: {report['bandwidth_gb_per_second']:,.1f} GB/s; {_memory(report)}")
    _show_rest(report)


def _show_tokenizer(report: Mapping[str, Any]) -> None:
    out(
        f"{report['source']}: {report['bytes'] / 1e6:,.2f} MB, {report['vocab_size']:,} ids, pattern "
        f"{report['pattern']}; {counted(report['cores'], 'core')}, Rust's trainers on {report['rayon_threads']}\n"
    )
    for key, figure in (("training", "seconds"), ("encoding", "mb_per_second")):
        rows = [(side["name"], *_spread(side[figure]), _ratio(side["ratio"])) for side in report[key]]
        _table((f"[bold]{key}[/bold]", figure.replace("mb_per_second", "MB/s"), "quartiles", "ours/theirs"), rows)
        out("")
    same = {True: "the same as", False: "NOT those of", None: "not compared with"}
    out(f"merges {same[report['same_merges']]} Hugging Face's, ids {same[report['same_ids']]} tiktoken's")
    _show_notes(report)


def _show_data(report: Mapping[str, Any]) -> None:
    made, drawn, tokenizer = report["prepare"], report["batches"], report["tokenizer"]
    out(
        f"{report['source']}: {report['bytes'] / 1e6:,.2f} MB, {counted(report['tokens'], 'token')} of a "
        f"{tokenizer['kind']} tokenizer of {tokenizer['vocab_size']:,} ids; "
        f"batches of {drawn['batch_size']} x {drawn['seq_len']}\n"
    )
    rows = [
        ("prepare", *_spread(made["seconds"]), "s", f"{made['tokens_per_second']:,.0f}"),
        ("batch", *_spread(drawn["microseconds_per_batch"]), "µs", f"{drawn['tokens_per_second']:,.0f}"),
    ]
    _table(("", "median", "quartiles", "", "tokens/s"), rows)
    out(f"\n{made['mb_per_second']:,.1f} MB/s, {drawn['batches_per_second']:,.0f} batches/s")


def _layers(shape: dict[str, Any]) -> str:
    return f"{counted(shape['num_layers'], 'layer')} of width {shape['embed_dim']}, {shape['vocab_size']:,} ids"


def _place(report: Mapping[str, Any]) -> str:
    return f"{report['device_name']}, {counted(report['threads'], 'thread')}"


def _memory(report: Mapping[str, Any]) -> str:
    peak = report["peak_memory_bytes"]
    return "peak memory unknown" if peak is None else f"peak memory {peak / 1e6:,.0f} MB (ours)"


def _spread(figure: Mapping[str, float]) -> tuple[str, str]:
    """Median, and the quartiles as a range."""
    return f"{figure['median']:,.3f}", f"{figure['q1']:,.3f} to {figure['q3']:,.3f}"


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} x"


def _show_rest(report: Mapping[str, Any]) -> None:
    _show_notes(report)
    trace = report["profile"]
    if trace is None:
        return
    groups = ", ".join(f"{name} {share:.1%}" for name, share in trace["groups"].items())
    out(f"\n{trace['file']}: open it in ui.perfetto.dev; time of {report['sides'][0]['name']}: {groups}\n")
    rows = [
        (escape(row["name"][:60]), row["group"], f"{row['share']:.1%}", f"{row['ms']:,.2f}", f"{row['calls']:,}")
        for row in trace["operations"]
    ]
    _table(("operation", "group", "share", "ms", "calls"), rows, left=2)


def _show_notes(report: Mapping[str, Any]) -> None:
    for note in report["notes"]:
        out(f"note: {note}")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> None:
    """Print a table on stdout; its first `left` columns are words."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for place, head in enumerate(heads):
        table.add_column(head, no_wrap=True, justify="left" if place < left else "right")
    for row in rows:
        table.add_row(*row)
    SafeConsole(highlight=False, width=200).print(table)  # so that a file or a narrow window does not cut figures off


SUBJECTS: dict[str, tuple[Any, Callable[..., Mapping[str, Any]], Callable[[Mapping[str, Any]], None]]] = {
    "train": (Train, _train, _show_train),
    "generate": (Generate, _generate, _show_generate),
    "tokenizer": (Tokenizer, _tokenizer, _show_tokenizer),
    "data": (Data, _data, _show_data),
}
