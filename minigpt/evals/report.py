"""Report scores that can be compared between models, with confidence intervals and the floors of the same text.

    loss             nats per token, over all tokens of the split but the first, which is not predicted
    perplexity       exp(loss)
    bits_per_byte    all nats / ln 2 / bytes of the source text in these tokens, so that different tokenizers can be
                     compared; an end-of-text token has nats but no bytes
    word_perplexity  exp(all nats / words), with words as WikiText counts them: split at white space, and one per line
                     end

The interval comes from a bootstrap (Efron, 1979): blocks of about `context` tokens are drawn with replacement, and
the ratio of their sums is taken. It says how much a score depends on the choice of text in the split, not on the seed
of training. Neighbouring blocks of a document are similar, so the interval is a little too narrow.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, TypedDict

import numpy as np
import numpy.typing as npt

from minigpt.console import headline, scored_on
from minigpt.data import Prepared
from minigpt.errors import DataError, UserError, nearest
from minigpt.evals.floors import run_floors
from minigpt.evals.perplexity import Score, evaluate
from minigpt.evals.token_text import TokenText
from minigpt.model import GPT
from minigpt.runtime.device import Runtime
from minigpt.tokenizers import Tokenizer


class Interval(TypedDict):
    """[low, high] of two scores."""

    loss: list[float]
    bits_per_byte: list[float]


class Figures(TypedDict):
    """The scores of the same text computed in another way, shown next to the headline."""

    loss: float
    perplexity: float | None
    bits_per_byte: float
    word_perplexity: float | None


class Report(TypedDict):
    """The scores that the module's docstring defines, and what was scored.

    A perplexity too large for a float is None. The interval is None if there is only one block. Floors are in bits per
    byte, by name.
    """

    loss: float
    perplexity: float | None
    bits_per_byte: float
    word_perplexity: float | None
    tokens: int
    bytes: int
    words: int
    confidence_interval: Interval | None
    floors: dict[str, float]
    split: str
    context: int
    stride: int
    checkpoint: str
    step: int
    data: str


FLOOR_NAMES = {
    "uniform": "uniform: any byte",
    "unigram": "unigram: byte frequencies",
    "five_gram": "5-gram of bytes",
    "xz": "xz",
    "entropy": "entropy of the source",
    "surprisal": "this text under the source",
}
"""The label of each floor in a table."""

HEADLINE_FLOORS = {"five_gram": "a 5-gram model", "entropy": "the source's entropy"}
"""The floors that the headline shows."""

REPORT_KEYS = tuple(Report.__annotations__)

_RESAMPLES = 1000
_SEED = 0
_MOST_DRAWS = 1 << 24  # block indices held at a time: 128 MB


class Run(Protocol):
    """What evaluation needs from a loaded run."""

    @property
    def path(self) -> Path: ...
    @property
    def checkpoint(self) -> Path: ...
    @property
    def step(self) -> int: ...
    @property
    def model(self) -> GPT: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def runtime(self) -> Runtime: ...
    def prepared(self) -> Prepared:
        """Its own data."""
        ...


def evaluate_run(
    run: Run,
    *,
    prepared: Prepared | None = None,
    split: str = "val",
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    scorer: Callable[..., Score] = evaluate,
) -> Report:
    """Evaluate a loaded run on a whole split: `evaluate_run(load_run("runs/my"))["bits_per_byte"]`.

    Args:
        run: from `load_run`.
        prepared: data to use instead of the run's own, such as `run.prepared("other.txt")`.
        split: val, test or train.
        context: tokens in a window (default: the model's context).
        stride: tokens between the starts of windows (default: context, no overlap, as for training's val_loss).
        batch_size, progress: see `evaluate`.
        scorer: a function to use instead of `evaluate`, with the same arguments, such as `at_temperature(1.1)`.

    Raises:
        UserError: no such split, a context longer than the model's, a stride out of range.
        DataError: too little text.
    """
    prepared = prepared or run.prepared()
    if split not in prepared.splits:
        raise UserError(f"{prepared.meta['source']} has no {split} split; {nearest(split, prepared.splits)}")
    longest = run.model.config.max_seq_len
    context = longest if context is None else context
    if not 1 <= context <= longest:
        raise UserError(f"context {context} does not fit the model; choose 1 to {longest}")
    tokens = prepared.splits[split].tokens
    score = scorer(
        run.model,
        tokens,
        context=context,
        stride=stride,
        batch_size=batch_size,
        runtime=run.runtime,
        token_lengths=TokenText(run.tokenizer).lengths,
        progress=progress,
    )
    return report(
        score,
        text_bytes=prepared.predicted_bytes(split, run.tokenizer),
        words=prepared.meta["splits"][split]["words"],
        floors=run_floors(prepared, run.tokenizer, split),
        split=split,
        context=context,
        stride=stride or context,
        checkpoint=str(run.checkpoint),
        step=run.step,
        data=prepared.meta["source"],
    )


def report(
    score: Score,
    *,
    text_bytes: int,
    words: int,
    floors: dict[str, float],
    split: str,
    context: int,
    stride: int,
    checkpoint: str,
    step: int,
    data: str,
) -> Report:
    """The report of a score; `text_bytes` and `words` are those of the source text. See `evaluate_run`."""
    if not text_bytes:
        raise DataError(f"the {split} text is a single token; give more text")
    nats, tokens = float(score.nats.sum()), int(score.tokens.sum())
    return {
        "loss": nats / tokens,
        "perplexity": _exp(nats / tokens),
        "bits_per_byte": nats / math.log(2) / text_bytes,
        "word_perplexity": _exp(nats / words) if words else None,
        "tokens": tokens,
        "bytes": text_bytes,
        "words": words,
        "confidence_interval": _intervals(score, text_bytes, context),
        "floors": floors,
        "split": split,
        "context": context,
        "stride": stride,
        "checkpoint": checkpoint,
        "step": step,
        "data": data,
    }


def figures(report: Report) -> Figures:
    """Only the scores of a report."""
    return {
        "loss": report["loss"],
        "perplexity": report["perplexity"],
        "bits_per_byte": report["bits_per_byte"],
        "word_perplexity": report["word_perplexity"],
    }


def report_headline(report: Report) -> str:
    """The report in one line; training, eval and the demo all print it."""
    stride = None if report["stride"] == report["context"] else report["stride"]
    line = headline(report["bits_per_byte"], report["step"], scored_on(report["split"], stride=stride))
    floors = [f"{name} {report['floors'][key]:.3f}" for key, name in HEADLINE_FLOORS.items() if key in report["floors"]]
    return f"{line}; {', '.join(floors)}" if floors else line


def _exp(nats: float) -> float | None:
    return math.exp(nats) if nats < 700 else None


def _intervals(score: Score, text_bytes: int, context: int) -> Interval | None:
    # Overlapping windows score few tokens each; neighbours are joined into blocks of about `context` tokens.
    block = (np.cumsum(score.tokens) - score.tokens) // context  # [W]
    starts = np.flatnonzero(np.concatenate(([True], block[1:] != block[:-1])))
    nats, tokens, bytes_ = (np.add.reduceat(part, starts) for part in (score.nats, score.tokens, score.bytes))
    if len(starts) < 2 or not bytes_.sum():
        return None
    # text_bytes counts the bytes of unknown characters; the token lengths do not.
    scale = bytes_.sum() / text_bytes / math.log(2)
    low, high = bootstrap(nats, bytes_) * scale
    return {"loss": bootstrap(nats, tokens).tolist(), "bits_per_byte": [float(low), float(high)]}


def bootstrap(
    numerators: npt.NDArray[Any],
    denominators: npt.NDArray[Any],
) -> npt.NDArray[np.float64]:
    """95 % percentile interval [low, high] of sum(numerators) / sum(denominators), blocks [K] drawn with replacement.

    The draws depend only on K, so that two models scored on the same windows get the same draws.
    """
    rng = np.random.default_rng(_SEED)
    count = len(numerators)
    rows = max(1, _MOST_DRAWS // count)
    ratios = []
    for start in range(0, _RESAMPLES, rows):
        drawn = rng.integers(count, size=(min(rows, _RESAMPLES - start), count))
        ratios.append(numerators[drawn].sum(1) / denominators[drawn].sum(1))
    return np.percentile(np.concatenate(ratios), [2.5, 97.5])
