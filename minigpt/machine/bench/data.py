"""Measure how fast text is converted to token files, and token files to batches, for `minigpt bench data`."""

from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

from minigpt import tokenizers
from minigpt.config import RunConfig
from minigpt.data import Batches, Prepared, prepare, text_chunks
from minigpt.errors import storage_error
from minigpt.machine.bench.timing import Spread, SpreadFigures, Tell, rounded, stopwatch

BATCHES = 200
"""Number of batches per round."""


class TokenizerUsed(TypedDict):
    """The tokenizer that was timed."""

    kind: str
    vocab_size: int


class PrepareFigures(TypedDict):
    """Speed of preparing."""

    seconds: SpreadFigures
    mb_per_second: float
    tokens_per_second: float


class BatchFigures(TypedDict):
    """Speed of drawing batches."""

    batch_size: int
    seq_len: int
    microseconds_per_batch: SpreadFigures
    batches_per_second: float
    tokens_per_second: float


class DataReport(TypedDict):
    """The object that `minigpt bench data --json` prints."""

    source: str
    bytes: int
    tokens: int
    tokenizer: TokenizerUsed
    rounds: int
    prepare: PrepareFigures
    batches: BatchFigures


def bench_data(config: RunConfig, rounds: int = 3, tell: Tell = lambda what: None) -> DataReport:
    """Measure preparing config.data.source with the config's tokenizer, and drawing the config's batches from it.

    First the text is written to a plain file in a temporary directory, and the tokenizer is made. Neither is timed, so
    for `stories` the speed of the grammar does not count. Each round then reads, splits, encodes and writes again.

    Raises:
        DataError: no such text, or it is too short for a window.
        TokenizerError: the tokenizer cannot be made.
        StorageError: the temporary directory is full.
    """
    with TemporaryDirectory(prefix="minigpt-bench-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        text = folder / "text.txt"
        tell("writing the text")
        _write(text, text_chunks(config.data.source, config.data, None))
        tell(f"making the {config.tokenizer.kind} tokenizer")
        plain = config.data.model_copy(
            update={"source": str(text), "encoding": "utf-8", "clean": (), "split_at": ""}  # the marks are gone
        )
        split = None if config.tokenizer.kind in ("char", "auto") else "train"  # as in `runs.data.make_tokenizer`
        tokenizer = tokenizers.build(config.tokenizer, text_chunks(str(text), plain, split))
        size, seconds, prepared = text.stat().st_size, list[float](), list[Prepared]()
        for number in range(rounds):
            tell(f"round {number + 1} of {rounds}: preparing")
            # A new name each time, since this process remembers the surveys of texts.
            text = text.rename(folder / f"{number}.txt")
            renamed = plain.model_copy(update={"source": str(text)})
            out = folder / f"prepared-{number}"
            seconds.append(
                stopwatch(
                    lambda renamed=renamed, out=out: prepared.append(
                        prepare(renamed, tokenizer, tokenizer.safe_cut, out)
                    )
                )
            )
        tell("drawing batches")
        splits = prepared[-1].meta["splits"].values()
        tokens, spread = sum(split["tokens"] for split in splits), Spread.of(seconds)
        return {
            "source": config.data.source,
            "bytes": size,
            "tokens": tokens,
            "tokenizer": {"kind": tokenizer.kind, "vocab_size": tokenizer.vocab_size},
            "rounds": rounds,
            "prepare": {
                "seconds": spread.figures(),
                "mb_per_second": rounded(size / 1e6 / spread.median),
                "tokens_per_second": rounded(tokens / spread.median),
            },
            "batches": batch_figures(prepared[-1], config, rounds),
        }


def batch_figures(prepared: Prepared, config: RunConfig, rounds: int) -> BatchFigures:
    """Speed of `Batches` over the training split, for the config's batch size and context."""
    size, length = config.train.batch_size, config.model.max_seq_len
    batches = Batches(prepared.splits["train"].tokens, size, length, config.train.seed)
    batches.batch(0)  # the first call maps the file
    spread = Spread.of([stopwatch(lambda step=step: batches.batch(step)) for step in range(rounds * BATCHES)])
    return {
        "batch_size": size,
        "seq_len": length,
        "microseconds_per_batch": spread.figures(1e6),
        "batches_per_second": rounded(1 / spread.median),
        "tokens_per_second": rounded(size * length / spread.median),
    }


def _write(path: Path, chunks: Iterable[str]) -> None:
    try:
        with path.open("w", encoding="utf-8", newline="", errors="replace") as file:
            file.writelines(chunks)
    except OSError as error:
        raise storage_error(path, error, "name another place with TMPDIR") from None
