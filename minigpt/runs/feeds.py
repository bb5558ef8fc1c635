"""Give a run its data: batches of windows of a text, or of rows that are records."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from rich.console import Console

from minigpt.config import RunConfig
from minigpt.console import counted, printer, progress_bars
from minigpt.data import Batches, Prepared, eval_batches
from minigpt.errors import DataError, TokenizerError
from minigpt.runs.data import check_known, count_unknown, prepare_data, tell_unknown
from minigpt.tokenizers import Tokenizer
from minigpt.tokenizers.chat_template import Template, encode
from minigpt.training.finetune.preference import fit_pair, stack_pairs
from minigpt.training.finetune.records import Record, Sides
from minigpt.training.finetune.row_batches import Row, RowBatches, fit, pack, row_eval_batches, stack
from minigpt.training.loop import BatchSource
from minigpt.training.step import Batch


class Feed(Protocol):
    """The data that a run learns from.

    Attributes:
        batches: for training.
        bytes_per_token: source bytes per validation target, for bits per byte; None if the loss is not per token.
        sha256: of each split, for the receipt.
        size: for the screen, "1,000 training tokens".
        caveat: a warning that belongs to every figure of the run; "" for none.
        text: the token files; None for records.
    """

    @property
    def batches(self) -> BatchSource: ...
    @property
    def bytes_per_token(self) -> float | None: ...
    @property
    def sha256(self) -> Mapping[str, str]: ...
    @property
    def size(self) -> str: ...
    @property
    def caveat(self) -> str: ...
    @property
    def text(self) -> Prepared | None: ...

    def validation(self, rows: int, count: int | None, together: int) -> Iterable[Batch]:
        """Validation batches of `rows` rows, `count` of them (None: all), in groups of `together`
        (`batches.spread`).
        """
        ...


@dataclass(frozen=True)
class TextFeed:
    """Windows of seq_len tokens of a text."""

    batches: Batches
    held_out: np.ndarray
    seq_len: int
    bytes_per_token: float | None
    sha256: Mapping[str, str]
    size: str
    caveat: str
    text: Prepared

    def validation(self, rows: int, count: int | None, together: int) -> Iterable[Batch]:
        """Windows of the held-out text that do not overlap."""
        return eval_batches(self.held_out, self.seq_len, self.seq_len, rows, count, together)


@dataclass(frozen=True)
class RecordFeed:
    """Rows of one record each, or of several packed together, or pairs of rows."""

    batches: RowBatches
    held_out: Sequence[Any]
    stack: Callable[..., Batch]
    seq_len: int
    bytes_per_token: float | None
    sha256: Mapping[str, str]
    size: str
    caveat: str = ""  # unknown characters are listed once, before training
    text: None = None

    def validation(self, rows: int, count: int | None, together: int) -> Iterable[Batch]:
        """Every held-out row once, or a part of the rows."""
        return row_eval_batches(self.held_out, self.seq_len, rows, count, together, make=self.stack)


def text_feed(
    config: RunConfig, tokenizer: Tokenizer, console: Console, seq_len: int, flag: str = "--model.max-seq-len"
) -> TextFeed:
    """Windows of seq_len tokens of the config's text; `flag` is the setting of seq_len. Raises DataError."""
    with progress_bars(console) as report:
        prepared = prepare_data(config, tokenizer, report)
    check_lengths(prepared, seq_len, flag)
    if caveat := check_known(config, tokenizer, prepared, ("train", "val")):
        printer(console)(caveat)
    train, val = (prepared.splits[split].tokens for split in ("train", "val"))
    return TextFeed(
        Batches(train, config.train.batch_size, seq_len, config.train.seed),
        val,
        seq_len,
        bytes_per_token(prepared, tokenizer),
        prepared.sha256,
        counted(len(train), "training token"),
        caveat,
        prepared,
    )


def check_lengths(prepared: Prepared, seq_len: int, flag: str | None) -> None:
    """Raises DataError if a split is shorter than one window of context. `flag`: the setting of seq_len; None: none."""
    fitting = min(prepared.splits[split].count for split in ("train", "val")) // 2
    for split in ("train", "val"):
        count = prepared.splits[split].count
        if count < seq_len + 1:
            what, more = ("training", "") if split == "train" else ("validation", ", hold out more of it with")
            more += " a larger --data.val-fraction" if more else ""
            more += f", or set {flag} {fitting}" if flag and fitting else ""
            problem = f"the {what} text has {counted(count, 'token')}, but one window needs {seq_len + 1}"
            raise DataError(f"{problem}; give more text{more}")


def bytes_per_token(prepared: Prepared, tokenizer: Tokenizer) -> float:
    """Source bytes per predicted token of the validation split."""
    return prepared.predicted_bytes("val", tokenizer) / max(1, prepared.splits["val"].count - 1)


def record_feed(
    config: RunConfig, sides: Sides, tokenizer: Tokenizer, template: Template, console: Console
) -> RecordFeed:
    """Rows of the records. Raises TokenizerError."""
    train, val = sides
    seq_len, seed = config.seq_len, config.train.seed
    sha256 = {"train": _digest(train), "val": _digest(val)}
    if tokenizer.eos_id is None and train[0].kind != "chat":
        console.print("the tokenizer has no end of text, so the model will not learn where an answer ends")

    def rows(records: list[Record], answer: str = "") -> list[Row]:
        return [record_row(record, template, tokenizer, answer) for record in records]

    def cut(rows: list[Row]) -> list[Row]:
        return [fit(row, seq_len + 1) for row in rows]

    chosen, chosen_val = rows(train), rows(val)
    if config.finetune.dpo_beta:
        rejected, rejected_val = rows(train, "rejected"), rows(val, "rejected")
        every = chosen + chosen_val + rejected + rejected_val
        pairs = zip(chosen + chosen_val, rejected + rejected_val, strict=True)
        _tell_losses([max(pair, key=lambda row: len(row.ids)) for pair in pairs], seq_len + 1, console)
        _tell_unknown(config.data.source, sides, every, template, tokenizer, console)
        learn, check = (
            [fit_pair(*pair, seq_len + 1) for pair in zip(ours, theirs, strict=True)]
            for ours, theirs in ((chosen, rejected), (chosen_val, rejected_val))
        )
        batches = RowBatches(learn, config.train.batch_size, seq_len, seed, stack_pairs)
        size = f"{counted(len(train), 'pair')} to learn and {len(val):,} to validate"
        return RecordFeed(batches, check, stack_pairs, seq_len, None, sha256, size)
    _tell_losses(chosen + chosen_val, seq_len + 1, console)
    _tell_unknown(config.data.source, sides, chosen + chosen_val, template, tokenizer, console)
    learn, check = cut(chosen), cut(chosen_val)
    learned, tokens = sum(int(row.learned.sum()) for row in learn), sum(len(row.ids) for row in learn)
    ratio = _bytes_per_answer_token(val, chosen_val, check, template, tokenizer)
    learn = pack(learn, seq_len + 1) if config.finetune.pack else learn
    batches = RowBatches(learn, config.train.batch_size, seq_len, seed, stack)
    size = f"{counted(len(train), 'record')} to learn ({learned:,} of {counted(tokens, 'token')})"
    size += f" and {len(val):,} to validate"
    return RecordFeed(batches, check, stack, seq_len, ratio or None, sha256, size)


def record_row(record: Record, template: Template, tokenizer: Tokenizer, answer: str = "") -> Row:
    """Ids of a record (with this `answer`), and which of them are learned. Raises TokenizerError with the record's
    line.
    """
    try:
        return Row(*encode(record.pieces(template, tokenizer.eos_id is not None, answer), tokenizer))
    except TokenizerError as error:
        raise TokenizerError(f"{record.where}: {error}") from None


def _bytes_per_answer_token(
    records: list[Record], rows: list[Row], cut: list[Row], template: Template, tokenizer: Tokenizer
) -> float:
    """Source bytes per learned token: from its ids after the cut, or from the text before it if the ids do not keep the
    text.
    """
    if tokenizer.keeps_text:
        targets = np.concatenate([row.ids[row.learned] for row in cut])
        return sum(len(tokenizer.token_bytes(int(id_))) for id_ in targets) / max(1, len(targets))
    pieces = (piece for record in records for piece in record.pieces(template, tokenizer.eos_id is not None))
    size = sum(len(piece.text.encode()) for piece in pieces if piece.learned)
    return size / max(1, sum(int(row.learned.sum()) for row in rows))


def _tell_losses(rows: list[Row], capacity: int, console: Console) -> None:
    """Print which parts of the records the model will not see."""
    long = sum(len(row.ids) > capacity for row in rows)
    cut = sum(bool(row.learned[: max(0, len(row.ids) - capacity)].any()) for row in rows)
    if long:
        answers = f", {cut:,} of them within an answer" if cut else ""
        console.print(
            f"cut to fit a row of {counted(capacity - 1, 'token')}: the beginning of {long:,} of "
            f"{counted(len(rows), 'record')}{answers}"
        )


def _tell_unknown(
    source: str, sides: Sides, rows: list[Row], template: Template, tokenizer: Tokenizer, console: Console
) -> None:
    """Print which units of the records the tokenizer does not know. Raises DataError if there are too many."""
    ids = [row.ids for row in rows]
    if tokenizer.unk_id is None or not (unknown := count_unknown(ids, tokenizer)):
        return
    answers = ("chosen", "rejected") if sides[0][0].kind == "preference" else ("",)
    texts = [
        piece.text
        for side in sides
        for record in side
        for answer in answers
        for piece in record.pieces(template, True, answer)
    ]
    if not (unknown := unknown - sum(map(tokenizer.spelled_unknown, texts))):
        return
    effect = "the model reads them all as one, and cannot write them"
    printer(console)(tell_unknown(source, unknown, sum(map(len, ids)), "tokens", texts, tokenizer, effect))


def _digest(records: list[Record]) -> str:
    return hashlib.sha256("".join(record.digest for record in records).encode()).hexdigest()
