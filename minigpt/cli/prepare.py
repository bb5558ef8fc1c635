"""Turn text into token files: `minigpt prepare`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from minigpt.cli.arguments import PathText, Positional, config_from, parse, tell_unused
from minigpt.console import console, out, out_json, progress_bars, tell


@dataclass(frozen=True)
class Prepare:
    """Turn text into token files, as training would do; training with the same text and tokenizer then starts at once.

    minigpt prepare my.txt
    minigpt prepare notes/ --tokenizer.kind bpe --tokenizer.vocab-size 8192 --out prepared/
    minigpt prepare recipes/shakespeare-char.yaml --json
    cat *.txt | minigpt prepare - --data.clean '[newlines, nfc]'

    The files of a directory, JSON lines and stories are documents; each is in one split as a whole. A plain text is cut
    90/10. The files go to the cache ($MINIGPT_CACHE, else ~/.cache/minigpt), where the next run finds them.
    """

    what: Positional[tuple[PathText, ...]] = ()
    """A recipe (.yaml or a shipped name), data (file, directory, glob, .jsonl, .gz, a named text such as stories or
    text8, hf:NAME, - for standard input), or both."""
    out: Path | None = None
    """Directory to write instead of the cache; it must be empty."""
    json: bool = False
    """Print one JSON object: directory, and what its meta.json says: version, key, source, encoding, clean,
    val_fraction, eos, skipped, tokenizer, splits {name: tokens, bytes, chars, words, documents, sha256}."""


def main(argv: list[str]) -> int:
    """Run the command."""
    args, overrides = parse(Prepare, argv, "prepare", with_config=True)
    config, recipe = config_from(args.what, overrides)
    tell_unused(config, recipe, overrides)
    from minigpt.runs.data import make_tokenizer, prepare_data

    with progress_bars(console) as report:
        prepared = prepare_data(config, make_tokenizer(config, report), report, args.out)
    if args.json:
        out_json({"directory": str(prepared.directory), **prepared.meta})
        return 0
    _show(prepared.meta)
    out(str(prepared.directory))
    return 0


def _show(meta: dict[str, Any]) -> None:
    table = Table("split", "tokens", "documents", "characters", "bytes", "words", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, figures in meta["splits"].items():
        columns = ("tokens", "documents", "chars", "bytes", "words")
        table.add_row(name, *(f"{figures[column]:,}" for column in columns))
    tokenizer = meta["tokenizer"]
    tell(f"{meta['source']}, {tokenizer['kind']} tokenizer with {tokenizer['vocab_size']:,} ids")
    console.print(table)
    if meta["skipped"]:
        tell(f"left out, since they are not text: {', '.join(meta['skipped'])}")
