"""Describe a text before a model is trained on it, as one dict of plain values.

The text is read as a stream. Sizes, lengths and characters are of the whole text. Figures that would need much memory
or time are of a part only: tokens of the first TOKEN_CHARS characters, repeated lines of the first MAX_LINES lines, and
the overlap of the first VAL_CHARS characters of validation with the first TRAIN_CHARS of training. `sampled` is true
where the text was longer than this part.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, Protocol, TypedDict

import numpy as np

from minigpt.config import DataConfig
from minigpt.data.corpus import Corpus, Piece, open_corpus
from minigpt.data.inspect.overlap import overlap
from minigpt.data.statistics import TextStatistics
from minigpt.download import Progress
from minigpt.tokenizers.base import show

TOKEN_CHARS = 50_000_000
VAL_CHARS, TRAIN_CHARS = 20_000_000, 100_000_000
MAX_LINES = 500_000
TOP = 20
RANKS = 60
BATCH = 1 << 20  # characters that are counted at a time
BINS = 30  # most bins in a histogram of lengths


class SplitFigures(TypedDict):
    """One split. tokens is null without a tokenizer, and an estimate if only a part of the text was encoded."""

    bytes: int
    chars: int
    words: int
    documents: int
    sha256: str
    lines: int
    tokens: int | None


class Histogram(TypedDict):
    """Bin i is edges[i] <= length < edges[i+1]."""

    edges: list[int]
    counts: list[int]


class Lengths(TypedDict):
    """Lengths in characters. The bins of edges and counts double in size; the histogram's are finer, without 0."""

    mean: float
    longest: int
    edges: list[int]
    counts: list[int]
    histogram: Histogram


class Characters(TypedDict):
    """The characters of a text; top is a list of [character, count]."""

    distinct: int
    non_ascii: int
    top: list[list[Any]]


class Tokens(TypedDict):
    """Tokens of a text. top: a list of [text, id, count], with <e4><bd> as the text of a part of a character; ranks:
    about 60 of [n, count of the n-th most frequent].
    """

    kind: str
    vocab_size: int
    used: int
    bytes_per_token: float
    sampled: bool
    top: list[list[Any]]
    ranks: list[list[int]]


class Duplicates(TypedDict):
    """Repeated lines, among those that are not blank; top is a list of [line, count]."""

    lines: int
    repeated: int
    share: float
    sampled: bool
    top: list[list[Any]]


class Overlap(TypedDict):
    """The share of validation's 13-word sequences that are also in training; null if the text is shorter.

    The unit is 50 characters in languages without spaces between words.
    """

    unit: str
    grams: int
    seen: int
    share: float | None
    sampled: bool


class TextReport(TypedDict):
    """Figures of a text, in the order in which `minigpt data inspect --json` prints them.

    skipped: files of a directory that are not text. examples: up to 3 excerpts, chosen at random with a fixed seed.
    tokens: null without a tokenizer.
    """

    source: str
    skipped: list[str]
    splits: dict[str, SplitFigures]
    line_length: Lengths
    document_length: Lengths
    characters: Characters
    tokens: Tokens | None
    duplicates: Duplicates
    overlap: Overlap
    examples: list[str]


class Reader(Protocol):
    """The methods of a tokenizer that inspecting needs."""

    kind: str
    vocab_size: int

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a text."""
        ...

    def token_bytes(self, id_: int, /) -> bytes:
        """The bytes of an id."""
        ...


def inspect_data(config: DataConfig, tokenizer: Reader | None = None, progress: Progress | None = None) -> TextReport:
    """Compute the figures of a text.

    Raises:
        DataError: see `open_corpus`.
    """
    corpus = open_corpus(config, progress)
    splits = {name: (TextStatistics(), _Lengths()) for name in corpus.splits}
    documents, characters, duplicates, examples = _Lengths(), _Characters(), _Duplicates(), _Examples()
    tokens = _Tokens(tokenizer) if tokenizer else None
    done = length = 0
    for piece in corpus.chunks():
        statistics, lengths = splits[piece.split]
        lines = piece.text.removesuffix("\n").split("\n")
        statistics.add(piece.text, piece.ends)
        lengths.add([len(line) for line in lines])
        duplicates.add(lines)
        characters.add(piece.text)
        examples.add(piece.text)
        if tokens:
            tokens.add(piece)
        length += len(piece.text)
        if piece.ends:
            documents.add([length])
            length = 0
        done += len(piece.text)
        if progress:
            progress(f"counting {corpus.source.name}", done, corpus.survey.chars)
    counted: dict[str, SplitFigures] = {}
    for name, (statistics, lengths) in splits.items():
        ids = tokens.estimate(name, statistics) if tokens else None
        counted[name] = {**statistics.figures(), "lines": lengths.number, "tokens": ids}
    return {
        "source": config.source,
        "skipped": list(corpus.source.skipped),
        "splits": counted,
        "line_length": _Lengths.together([lengths for _, lengths in splits.values()]).figures(),
        "document_length": documents.figures(),
        "characters": characters.figures(),
        "tokens": tokens.figures() if tokens else None,
        "duplicates": duplicates.figures(),
        "overlap": _overlap(corpus, progress),
        "examples": examples.chosen,
    }


def _overlap(corpus: Corpus, progress: Progress | None) -> Overlap:
    sampled = []

    def first(split: str, limit: int) -> Iterator[Piece]:
        done = 0
        for piece in corpus.chunks(split):
            if done >= limit:
                sampled.append(split)
                return
            done += len(piece.text)
            if progress:
                progress("comparing the splits", done, None)
            yield piece

    grams = overlap(first("val", VAL_CHARS), first("train", TRAIN_CHARS))
    return {**grams, "sampled": bool(sampled)}


class _Lengths:
    """Counts how often each length occurs."""

    def __init__(self) -> None:
        self.seen: Counter[int] = Counter()

    def add(self, lengths: list[int]) -> None:
        self.seen.update(lengths)

    @property
    def number(self) -> int:
        return self.seen.total()

    @staticmethod
    def together(parts: Iterable["_Lengths"]) -> "_Lengths":
        whole = _Lengths()
        for part in parts:
            whole.seen += part.seen
        return whole

    def figures(self) -> Lengths:
        longest = max(self.seen, default=0)
        counts = [0] * (longest.bit_length() + 1)  # 0, 1, 2-3, 4-7, 8-15, ...
        for length, count in self.seen.items():
            counts[length.bit_length()] += count
        return {
            "mean": sum(length * count for length, count in self.seen.items()) / max(1, self.number),
            "longest": longest,
            "edges": [0] + [2**power for power in range(len(counts))],
            "counts": counts,
            "histogram": self._histogram(),
        }

    def _histogram(self) -> Histogram:
        """At most 30 bins from the shortest length above 0: equal widths, or equal ratios for a range over 10 to 1."""
        lengths = np.array(sorted(length for length in self.seen if length), np.int64)
        if not len(lengths):
            return {"edges": [1, 2], "counts": [0]}
        low, high = int(lengths[0]), int(lengths[-1]) + 1
        spaced = np.geomspace if high > 10 * low else np.linspace
        edges = np.unique(spaced(low, high, BINS + 1).round().astype(np.int64))
        counts, _ = np.histogram(lengths, edges, weights=[self.seen[int(length)] for length in lengths])
        return {"edges": edges.tolist(), "counts": counts.astype(int).tolist()}


class _Characters:
    """Counts code points, a million at a time, in one table for all of Unicode (9 MB)."""

    def __init__(self) -> None:
        self.counts = np.zeros(0x110000, np.int64)
        self.held: list[str] = []
        self.size = 0

    def add(self, text: str) -> None:
        self.held.append(text)
        self.size += len(text)
        if self.size >= BATCH:
            self._count()

    def _count(self) -> None:
        points = np.frombuffer("".join(self.held).encode("utf-32-le"), np.uint32)
        found = np.bincount(points)
        self.counts[: len(found)] += found
        self.held, self.size = [], 0

    def figures(self) -> Characters:
        self._count()
        order = np.argsort(-self.counts, kind="stable")[:TOP]
        return {
            "distinct": int(np.count_nonzero(self.counts)),
            "non_ascii": int(self.counts[128:].sum()),
            "top": [[chr(point), int(self.counts[point])] for point in order if self.counts[point]],
        }


class _Duplicates:
    """Counts lines that are not blank by their hash. Only repeated lines keep their text."""

    def __init__(self) -> None:
        self.counts: dict[int, int] = {}
        self.texts: dict[int, str] = {}
        self.lines = 0
        self.sampled = False

    def add(self, lines: list[str]) -> None:
        for line in lines:
            stripped = line.strip()
            if not stripped:
                continue
            if self.lines >= MAX_LINES:
                self.sampled = True
                return
            self.lines += 1
            key = hash(stripped)
            self.counts[key] = count = self.counts.get(key, 0) + 1
            if count == 2:
                self.texts[key] = stripped[:80]

    def figures(self) -> Duplicates:
        repeated = self.lines - len(self.counts)
        top = sorted(self.texts, key=lambda key: (-self.counts[key], self.texts[key]))[:TOP]
        return {
            "lines": self.lines,
            "repeated": repeated,
            "share": repeated / max(1, self.lines),
            "sampled": self.sampled,
            "top": [[self.texts[key], self.counts[key]] for key in top],
        }


class _Tokens:
    """Counts the ids of the first TOKEN_CHARS characters."""

    def __init__(self, tokenizer: Reader):
        self.tokenizer = tokenizer
        self.counts = np.zeros(tokenizer.vocab_size, np.int64)
        self.chars = self.bytes = 0
        self.by_split: dict[str, list[int]] = {}  # split -> characters, ids
        self.sampled = False

    def add(self, piece: Piece) -> None:
        if self.chars >= TOKEN_CHARS:
            self.sampled = True
            return
        ids = self.tokenizer.encode_array(piece.text)
        self.counts += np.bincount(ids, minlength=len(self.counts))
        self.chars += len(piece.text)
        self.bytes += len(piece.text.encode())
        split = self.by_split.setdefault(piece.split, [0, 0])
        split[0] += len(piece.text)
        split[1] += len(ids)

    def estimate(self, split: str, text: TextStatistics) -> int:
        """Number of ids in a split, without end-of-text ids: exact if all of it was encoded, else from the mean."""
        chars, ids = self.by_split.get(split, (0, 0))
        return ids if chars == text.chars else round(text.bytes / self._bytes_per_token())

    def _bytes_per_token(self) -> float:
        return self.bytes / max(1, int(self.counts.sum()))

    def figures(self) -> Tokens:
        order = np.argsort(-self.counts, kind="stable")[:TOP]
        top = [
            [show(self.tokenizer.token_bytes(int(id_))), int(id_), int(self.counts[id_])]
            for id_ in order
            if self.counts[id_]
        ]
        return {
            "kind": self.tokenizer.kind,
            "vocab_size": self.tokenizer.vocab_size,
            "used": int(np.count_nonzero(self.counts)),
            "bytes_per_token": self._bytes_per_token(),
            "sampled": self.sampled,
            "top": top,
            "ranks": self._ranks(),
        }

    def _ranks(self) -> list[list[int]]:
        """[n, count of the n-th most frequent id], for ranks n with equal distances on a log axis."""
        counts = np.sort(self.counts[self.counts > 0])[::-1]
        ranks = np.unique(np.geomspace(1, len(counts), RANKS).round().astype(int)) if len(counts) else []
        return [[int(rank), int(counts[rank - 1])] for rank in ranks]


class _Examples:
    """Chooses three excerpts at random. Up to three excerpts of each piece take part; all have the same probability."""

    def __init__(self) -> None:
        self.chosen: list[str] = []
        self.seen = 0
        self.rng = random.Random(0)

    def add(self, text: str) -> None:
        for _ in range(3 if len(text) > 5000 else 1):  # (reservoir sampling)
            self.seen += 1
            place = len(self.chosen) if self.seen <= 3 else self.rng.randrange(self.seen)
            if place < 3:
                start = self.rng.randrange(max(1, len(text) - 400))
                start = text.find("\n", start) + 1 if start else 0
                self.chosen[place : place + 1] = [text[start : start + 200].strip()]
