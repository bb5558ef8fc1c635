"""Work with tokenizers: `minigpt tokenizer train | inspect | compare`."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.table import Table
from rich.text import Text

from minigpt.cli.arguments import PathText, Positional, parse, refuse
from minigpt.config import DataConfig, TokenizerConfig, load_config, split_flags
from minigpt.config.unused import without_effect
from minigpt.console import SafeConsole, console, counted, out, out_json, progress_bars, tell
from minigpt.errors import ConfigError, TokenizerError, UserError, nearest
from minigpt.files import check_writable
from minigpt.layout import TOKENIZER

if TYPE_CHECKING:
    from minigpt.tokenizers import Tokenizer

DEFAULTS = TokenizerConfig()
COLOURS = tuple(f"black on {colour}" for colour in ("cyan", "yellow", "green", "magenta", "white"))
LONGEST = 20
"""How many of the longest tokens inspect lists."""
SHOWN = 24
"""How many characters of each token the table shows; --json has all."""

USAGE = """minigpt tokenizer: make, look at and compare tokenizers

usage: minigpt tokenizer train|inspect|compare [...]        each with --help

  minigpt tokenizer train my.txt --kind bpe --vocab-size 8192 --out tokenizer.json
  minigpt tokenizer inspect tokenizer.json --text "Once upon a time"
  minigpt tokenizer compare tokenizer.json gpt2 byte --text my.txt
"""


@dataclass(frozen=True)
class Train:
    """Make a tokenizer from a text and save it as tokenizer.json.

    minigpt tokenizer train my.txt --kind bpe --vocab-size 8192 --out tokenizer.json
    minigpt tokenizer train notes.jsonl --data.text-field body --data.clean nfc --out tok/

    How the text is read is set by the data settings (--data.text-field, --data.encoding, --data.clean, ...). As in
    training, bpe and word learn from the training split only: of a plain text, from the first nine tenths.
    """

    source: Positional[PathText | None] = None
    """Named source, file, directory, glob, .jsonl, .gz, or - (byte and gpt2 need none)."""
    kind: Literal["char", "byte", "bpe", "word", "gpt2"] = "bpe"
    """char, byte, bpe, word (the text's words, as WikiText counts), or gpt2 (OpenAI's, fetched once)."""
    vocab_size: int | None = None
    """bpe: number of ids, special tokens included (default: 4096). word: the most ids (default: all words)."""
    pattern: Literal["gpt2", "gpt4", "gpt4o"] = DEFAULTS.pattern
    """bpe: how text is split before merging; gpt4o keeps words with combining marks (Hindi, Thai) whole."""
    unknown: Literal["token", "error"] = DEFAULTS.unknown
    """char: what to do with a character that is not in the vocabulary."""
    max_train_bytes: int = DEFAULTS.max_train_bytes
    """bpe: bytes of text to learn from."""
    out: PathText = PathText(TOKENIZER)
    """File (.json), or directory for tokenizer.json."""
    overwrite: bool = False
    """Replace the file if it exists."""
    json: bool = False
    """Print one JSON object: path, kind, vocab_size, special_tokens, pattern, fingerprint, seconds."""


@dataclass(frozen=True)
class Inspect:
    """Show what a tokenizer is, its longest tokens, and how it cuts a text.

    minigpt tokenizer inspect runs/my --text "Once upon a time"
    minigpt tokenizer inspect runs/my --plot vocabulary.svg
    """

    tokenizer: Positional[PathText]
    """tokenizer.json, a directory that holds one (a run), gpt2, or byte."""
    text: str | None = None
    """A text to show token by token."""
    plot: Path | None = None
    """Picture of the vocabulary to draw, .png or .svg: tokens by length."""
    json: bool = False
    """Print one JSON object: kind, vocab_size, special_tokens, pattern, fingerprint, longest_tokens, tokens."""


@dataclass(frozen=True)
class Compare:
    """Encode the same text with several tokenizers. Fewer tokens per word let the same context hold more text.

    minigpt tokenizer compare tokenizer.json gpt2 byte --text my.txt --plot compression.svg
    """

    tokenizers: Positional[tuple[PathText, ...]]
    """Two or more of: tokenizer.json, a directory that holds one, gpt2, byte."""
    text: PathText = PathText("stories")
    """Text to encode: a named source, file, directory, glob, .jsonl, .gz, or -."""
    max_bytes: int = 10_000_000
    """How many of its bytes to encode."""
    plot: Path | None = None
    """Picture to draw, .png or .svg: bytes per token against the size of the vocabulary."""
    json: bool = False
    """Print one JSON object: text, bytes, words, tokenizers (a list of the table's rows)."""


def main(argv: list[str]) -> int:
    """Run the command; the exit code. Raises UserError."""
    if not argv or argv[0] in ("-h", "--help"):
        out(USAGE)
        return 0
    action, words = argv[0], argv[1:]
    if action not in ("train", "inspect", "compare"):
        raise UserError(f"tokenizer {action}: no such command; {nearest(action, ('train', 'inspect', 'compare'))}")
    if action == "inspect":
        return _inspect(parse(Inspect, words, "tokenizer inspect")[0])
    overrides, rest = split_flags(words)
    if foreign := [path for path in overrides if not path.startswith("data.") or path == "data.source"]:
        raise ConfigError([f"{path}: not a setting of minigpt tokenizer {action}; see --help" for path in foreign])
    data = load_config(None, overrides).data
    if action == "train":
        return _train(parse(Train, rest, "tokenizer train")[0], data)
    return _compare(parse(Compare, rest, "tokenizer compare")[0], data)


def _train(args: Train, data: DataConfig) -> int:
    from minigpt.runs.data import make_tokenizer
    from minigpt.tokenizers import build

    path = Path(args.out)
    target = path if path.suffix == ".json" else path / TOKENIZER
    if target.exists() and not args.overwrite:
        raise TokenizerError(f"{target} exists already; give another --out, or --overwrite")
    fields = ("kind", "vocab_size", "pattern", "unknown", "max_train_bytes")
    given = {f"tokenizer.{name}": value for name in fields if (value := getattr(args, name)) is not None}
    config = load_config(None, given)
    unused = [path.removeprefix("tokenizer.") for path in without_effect(config, given)]
    refuse(args, unused, f"not for the kind {args.kind}; leave it out")
    if args.kind in ("char", "bpe", "word") and args.source is None:
        raise TokenizerError(f"a {args.kind} tokenizer is made from a text; name a source, as in `train my.txt`")
    check_writable(target, "choose another --out")
    start = time.perf_counter()
    with progress_bars(console) as report:
        if args.source:
            data = data.model_copy(update={"source": args.source})
            tokenizer = make_tokenizer(config.model_copy(update={"data": data}), report)
        else:
            tokenizer = build(config.tokenizer, (), report)
        tokenizer.save(target)
    summary = {"path": str(target), **_summary(tokenizer), "seconds": round(time.perf_counter() - start, 3)}
    if args.json:
        out_json(summary)
    else:
        SafeConsole().print(_facts(summary))
    return 0


def _inspect(args: Inspect) -> int:
    from minigpt.tokenizers.base import show

    tokenizer = open_tokenizer(args.tokenizer)
    if args.plot:
        from minigpt.explanation import draw_tokenizer

        tell(f"drawn: {draw_tokenizer(tokenizer, args.plot)}")
    summary = _summary(tokenizer)
    by_length = sorted(range(tokenizer.vocab_size), key=lambda id_: (-len(tokenizer.token_bytes(id_)), id_))
    longest = [{"id": id_, "text": show(tokenizer.token_bytes(id_))} for id_ in by_length[:LONGEST]]
    ids = None if args.text is None else tokenizer.encode(args.text)
    if args.json:
        tokens = None if ids is None else [{"id": id_, "text": tokenizer.label(id_)} for id_ in ids]
        out_json({**summary, "longest_tokens": longest, "tokens": tokens})
        return 0
    results = SafeConsole(highlight=False)
    shown = [repr(item["text"][:SHOWN]) for item in longest]
    results.print(_facts({**summary, "longest_tokens": "  ".join(shown)}))
    if ids is not None and args.text is not None:
        results.print()
        results.print(token_view(tokenizer, ids, colour=results.color_system is not None and not results.no_color))
        size = len(args.text.encode(errors="replace"))
        results.print(
            f"{counted(len(ids), 'token')}, {counted(size, 'byte')}, {size / max(1, len(ids)):.2f} bytes per token",
            style="dim",
        )
        results.print(" ".join(map(str, ids)), style="dim")
    return 0


def _compare(args: Compare, data: DataConfig) -> int:
    from minigpt.data import text_chunks
    from minigpt.runs.data import count_unknown

    if len(args.tokenizers) < 2:
        raise TokenizerError("compare needs two tokenizers or more, as in `compare tokenizer.json gpt2`")
    if args.plot:
        from minigpt.explanation import drawable

        drawable(args.plot)  # a missing library is reported before the work
    if args.max_bytes < 1:
        raise TokenizerError(f"--max-bytes {args.max_bytes} leaves nothing to encode; give 1 or more")
    tokenizers = {name: open_tokenizer(name) for name in args.tokenizers}
    text = _head(text_chunks(args.text, data, None), args.max_bytes)
    size, words = len(text.encode(errors="replace")), len(text.split())
    if not words:
        raise TokenizerError(f"{args.text} has no words to compare on; give a text that is not empty")
    rows = []
    for name, tokenizer in tokenizers.items():
        start = time.perf_counter()
        ids = tokenizer.encode_array(text)
        seconds = time.perf_counter() - start
        unknown = 0 if tokenizer.unk_id is None else count_unknown([ids], tokenizer) - tokenizer.spelled_unknown(text)
        rows.append(
            {
                "name": name,
                "kind": tokenizer.kind,
                "vocab_size": tokenizer.vocab_size,
                "tokens": len(ids),
                "bytes_per_token": round(size / len(ids), 4),
                "tokens_per_word": round(len(ids) / words, 4),
                "unknown": unknown,
                "mb_per_second": round(size / 1e6 / max(seconds, 1e-9), 2),
            }
        )
    if args.plot:
        from minigpt.explanation import draw_tokenizers

        tell(f"drawn: {draw_tokenizers(rows, args.plot, args.text)}")
    if args.json:
        out_json({"text": args.text, "bytes": size, "words": words, "tokenizers": rows})
        return 0
    table = Table(title=f"{args.text}: {counted(size, 'byte')}, {counted(words, 'word')}", box=None)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column in ("name", "kind") else "right")
    for row in rows:
        table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
    SafeConsole(markup=False).print(table)
    return 0


def open_tokenizer(name: str) -> "Tokenizer":
    """The tokenizer of a tokenizer.json, of a directory that holds one, or gpt2 or byte by name."""
    from minigpt.tokenizers import ByteTokenizer, gpt2_tokenizer, load

    if name in ("gpt2", "byte") and not Path(name).exists():
        return ByteTokenizer() if name == "byte" else gpt2_tokenizer()
    return load(name)


def token_view(tokenizer: "Tokenizer", ids: list[int], colour: bool) -> Text:
    """A text token by token: on coloured backgrounds, or with | between if there are no colours."""
    view = Text()
    for index, id_ in enumerate(ids):
        if index and not colour:
            view.append("|")
        label = tokenizer.label(id_)
        view.append(printable(label), style=COLOURS[index % len(COLOURS)] if colour else "")
        if label.endswith("\n"):
            view.append("\n")
    return view


def printable(text: str) -> str:
    """The text with every character escaped that would move the cursor or colour the terminal: "a\\n" for a line
    end.
    """
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _summary(tokenizer: "Tokenizer") -> dict[str, Any]:
    return {
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "special_tokens": tokenizer.special_tokens,
        "pattern": getattr(tokenizer, "pattern", None),
        "fingerprint": tokenizer.fingerprint,
    }


def _facts(facts: dict[str, Any]) -> Table:
    """Two columns, name and value; rows without a value are left out."""
    grid = Table.grid(padding=(0, 2))
    for name, value in facts.items():
        if isinstance(value, dict):
            value = "  ".join(f"{key} {id_}" for key, id_ in value.items())
        if value is not None:
            grid.add_row(Text(name.replace("_", " "), style="bold"), Text(str(value)))
    return grid


def _head(chunks: Iterator[str], max_bytes: int) -> str:
    """The first max_bytes bytes of a stream, without a last character that is cut in two."""
    parts: list[bytes] = []
    left = max_bytes
    for chunk in chunks:
        parts.append(chunk.encode(errors="replace")[:left])
        left -= len(parts[-1])
        if left <= 0:
            break
    return b"".join(parts).decode(errors="ignore")
