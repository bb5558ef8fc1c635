"""Look at a text, or make questions: `minigpt data inspect | questions`."""

import itertools
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minigpt.cli.arguments import PathText, Positional, config_from, parse, refuse, tell_unused
from minigpt.console import SafeConsole, console, out, out_json, progress_bars, tell
from minigpt.errors import UserError


@dataclass(frozen=True)
class Data:
    """Look at a text before training on it: sizes, lengths, characters, tokens, repeated lines, leaks between splits;
    or make questions and answers to fine-tune on.

    minigpt data inspect my.txt
    minigpt data inspect notes.jsonl --data.text-field body --tokenizer.kind gpt2
    minigpt data inspect wikitext-2 --plot wikitext.png --json
    minigpt data questions --count 2000 --out questions.jsonl

    In a very large text, tokens are counted in the first 50 million characters and repeated lines in the first 500,000
    lines. Leaks are searched in the first 20 million characters of validation and the first 100 million of training.
    """

    action: Positional[Literal["inspect", "questions"]]
    """inspect; or questions: chats about the openings of stories, as JSON lines."""
    what: Positional[tuple[PathText, ...]] = ()
    """A recipe (.yaml or a shipped name), data (file, directory, glob, name, - for standard input), or both."""
    count: int = 1000
    """questions: how many; none appears twice."""
    seed: int = 0
    """questions: another seed gives other questions."""
    out: Path | None = None
    """questions: the file to write (default: standard output)."""
    plot: Path | None = None
    """Picture to draw, .png or .svg: tokens by rank, documents and lines by length, characters."""
    json: bool = False
    """Print one JSON object: source, skipped, splits, line_length, document_length, characters, tokens, duplicates,
    overlap, examples."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Data, argv, "data", with_config=True)
    if args.action == "questions":
        refuse(args, ("plot", "json"), "only with inspect; leave it out")
        if overrides:
            raise UserError(f"{next(iter(overrides))}: is for a text; questions takes no settings")
        return _write_questions(args)
    refuse(args, ("count", "seed", "out"), "only with questions; leave it out")
    config, recipe = config_from(args.what, overrides)
    tell_unused(config, recipe, overrides)
    from minigpt.data.inspect.report import inspect_data
    from minigpt.explanation import draw_text, drawable
    from minigpt.runs.data import make_tokenizer

    if args.plot:
        drawable(args.plot)  # a missing library is reported before minutes of counting
    with progress_bars(console) as progress:
        report = inspect_data(config.data, make_tokenizer(config, progress), progress)
    if args.plot:
        draw_text(report, args.plot)
        tell(f"drawn: {args.plot}")
    if args.json:
        out_json(report)
    else:
        _show(report, SafeConsole(highlight=False))
    return 0


def _write_questions(args: Data) -> int:
    from minigpt.data.stories.questions import questions
    from minigpt.files import write_text  # imports torch, which the help does not need

    if args.what or not 0 < args.count <= 100_000 or not 0 <= args.seed < 2**31:
        raise UserError("questions takes --count 1 to 100000, --seed from 0 on, and no data")
    text = "".join(json.dumps(chat) + "\n" for chat in questions(args.count, args.seed))
    if args.out is None:
        out(text)
    else:
        if args.out.exists():
            raise UserError(f"{args.out} exists; choose another --out, or remove it")
        write_text(args.out, text, "choose another --out")
        out(str(args.out))
    return 0


def _show(report: Mapping[str, Any], console: Console) -> None:
    table = Table("split", "documents", "lines", "words", "characters", "bytes", "tokens", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, split in report["splits"].items():
        columns = ("documents", "lines", "words", "chars", "bytes", "tokens")
        table.add_row(name, *(f"{split[column]:,}" for column in columns))
    console.print(Text(report["source"], style="bold"), table)
    for name, title in (("line_length", "line length"), ("document_length", "document length")):
        lengths = report[name]
        # if each text is one document, there is no histogram of documents
        if sum(lengths["counts"]) > len(report["splits"]):
            console.print(f"\n{title}, characters: mean {lengths['mean']:,.1f}, longest {lengths['longest']:,}")
            console.print(_bars(_bins(lengths), lengths["counts"]))
    characters = report["characters"]
    console.print(f"\ncharacters: {characters['distinct']:,} different, {characters['non_ascii']:,} beyond ASCII")
    console.print(_bars([name_of(char) for char, _ in characters["top"]], [count for _, count in characters["top"]]))
    tokens = report["tokens"]
    console.print(
        f"\ntokens{_part(tokens)}: {tokens['used']:,} of {tokens['vocab_size']:,} {tokens['kind']} ids used, "
        f"{tokens['bytes_per_token']:.2f} bytes each; most frequent:"
    )
    console.print(Text("  ".join(f"{text!r} {count:,}" for text, _, count in tokens["top"])))
    _show_repeats(report["duplicates"], report["overlap"], console)
    console.print("\nexamples:")
    for example in report["examples"]:
        console.print(Text("  " + example.replace("\n", "\n  ") + "\n"))


def _show_repeats(duplicates: Mapping[str, Any], overlap: Mapping[str, Any], console: Console) -> None:
    repeated, lines, share = duplicates["repeated"], duplicates["lines"], duplicates["share"]
    console.print(f"\nrepeated lines{_part(duplicates)}: {repeated:,} of {lines:,} = {share:.1%}")
    for line, count in duplicates["top"][:5]:
        console.print(Text(f"  {count:>7,} x {line}"), overflow="ellipsis", no_wrap=True)
    if overlap["share"] is None:
        console.print(f"\nvalidation has no {overlap['unit']} in a row to look for in training")
    else:
        console.print(
            f"\n{overlap['share']:.2%} of validation's sequences of {overlap['unit']} are in training too"
            f"{_part(overlap)}: {overlap['seen']:,} of {overlap['grams']:,}"
        )


def _part(figures: Mapping[str, Any]) -> str:
    return " (of the first part)" if figures["sampled"] else ""


def name_of(char: str) -> str:
    """A character in a form that can be shown: '\\n', ' ', 'é', 'U+200B'."""
    if char in "\n\t\r ":
        return repr(char)
    return char if unicodedata.category(char)[0] not in "CZM" else f"U+{ord(char):04X}"


def _bins(lengths: Mapping[str, Any]) -> list[str]:
    edges = lengths["edges"]
    return [f"{low:,}" if high == low + 1 else f"{low:,}-{high - 1:,}" for low, high in itertools.pairwise(edges)]


def _bars(names: list[str], counts: list[int]) -> Text:
    """A bar chart in text; empty bins at both ends are left out."""
    rows = list(zip(names, counts, strict=True))
    while rows and not rows[0][1]:
        rows.pop(0)
    longest, most = max((cell_len(name) for name, _ in rows), default=0), max(counts, default=0)
    lines = [
        f"  {' ' * (longest - cell_len(name))}{name} {count:>12,} {'█' * round(40 * count / most)}"
        for name, count in rows
    ]
    return Text("\n".join(lines))
