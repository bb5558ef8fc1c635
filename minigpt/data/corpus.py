"""Clean and split a source, and give it as one stream of pieces. All code that reads text uses this module.

If the source has no published splits:
- One document is cut by characters: the first int((1 - val_fraction) x n) are for training, the rest for validation.
- Of several documents, each goes to one split as a whole. A hash of its cleaned text decides, so copies of a document
  stay together, and adding documents does not move others. With at most 1,000 different documents, the
  validation split could be much too small or too large by chance, or a split could be empty. Then documents are chosen
  for validation in the order of their hashes, as long as each one brings the share nearer to val_fraction.

A first pass, the survey, counts characters and hashes documents. It also finds errors in a text (an undecodable byte, a
broken line) in seconds, before encoding, which takes minutes.
"""

import json
import re
import warnings
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, NamedTuple

from minigpt.config import DataConfig
from minigpt.console import counted
from minigpt.data.clean import clean
from minigpt.data.sources import Reader, Source, resolve
from minigpt.download import Progress
from minigpt.errors import DataError, nearest
from minigpt.tokenizers.base import EOS
from minigpt.tokenizers.cutter import CHUNK, Cutter

FEW = 1000
LONGEST = 16 * CHUNK
"""Approximate largest number of characters in a chunk."""

_TRAIN, _VAL, _EMPTY = range(3)
_SPLITS = ("train", "val")


class Piece(NamedTuple):
    """Consecutive text of one document. `ends`: the document, or its part in this split, ends with this piece."""

    split: str
    text: str
    ends: bool


@dataclass(frozen=True)
class Survey:
    """The result of the first pass.

    Attributes:
        documents: number of documents that have text after cleaning, in all parts of the source.
        chars: number of characters after cleaning, in all parts of the source.
        cut: if one document is split: how many of its characters are for training.
        sides: if several documents are split: one byte per document, in order: 0 train, 1 val, 2 empty.
    """

    documents: int
    chars: int
    cut: int = 0
    sides: bytes = b""


@dataclass(frozen=True)
class Corpus:
    """A surveyed source; make it with `open_corpus`."""

    config: DataConfig
    source: Source
    survey: Survey

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits: train, val, and test if the source has a published test split."""
        return tuple(dict.fromkeys((*_SPLITS, *self.source.parts)))

    @property
    def many(self) -> bool:
        """Whether a split has more than one document, so that the ends of documents should be marked."""
        return self.survey.documents > len(self.source.parts)

    def pieces(self, split: str | None = None) -> Iterator[Piece]:
        """Yield the cleaned text of one split, or of all, in order, without empty pieces. Raises DataError."""
        if split not in (None, *self.splits):
            raise DataError(f"{self.source.name}: has no {split} split; {nearest(str(split), self.splits)}")
        for part, read in self.source.parts.items():
            if _to_split(self.source, part):
                yield from self._divided(read, split)
            elif split in (None, part):
                for blocks in read():
                    for text, last in _mark_last(clean(blocks, self.config.clean)):
                        yield Piece(part, text, last)

    def chunks(self, split: str | None = None) -> Iterator[Piece]:
        """Yield the pieces, joined to about a million characters, but never across documents.

        Long documents are cut after a line end if the next line does not begin with white space. None of the
        tokenizers' split patterns joins text across such a cut, so counts over chunks are the same as over the whole
        text. If all lines of 16 million characters begin with white space, as in WikiText, the cut is at the last line
        end, or else at the last space, so no word is cut.
        """
        cutter = Cutter(_chunk_cut, longest=LONGEST)
        for piece in self.pieces(split):
            if text := cutter.end(piece.text) if piece.ends else cutter.add(piece.text):
                yield Piece(piece.split, text, piece.ends)

    def _divided(self, read: Reader, split: str | None) -> Iterator[Piece]:
        if not self.survey.sides:
            yield from self._cut(read, split)
            return
        seen = 0
        for seen, blocks in enumerate(read(), 1):
            if seen > len(self.survey.sides):
                raise changed(self.source.name)
            side = self.survey.sides[seen - 1]
            if side != _EMPTY and split in (None, _SPLITS[side]):
                for text, last in _mark_last(clean(blocks, self.config.clean)):
                    yield Piece(_SPLITS[side], text, last)
        if seen != len(self.survey.sides):
            raise changed(self.source.name)

    def _cut(self, read: Reader, split: str | None) -> Iterator[Piece]:
        left = self.survey.cut  # characters left for training
        for blocks in read():
            for text, last in _mark_last(clean(blocks, self.config.clean)):
                if left and split in (None, "train"):
                    yield Piece("train", text[:left], left <= len(text))
                if len(text) > left and split in (None, "val"):
                    yield Piece("val", text[left:], last)
                left = max(0, left - len(text))
                if not left and split == "train":
                    return


def open_corpus(config: DataConfig, progress: Progress | None = None, source: Source | None = None) -> Corpus:
    """Find the source (unless it is given) and survey it. A survey is reused in this process while no file changes.

    Raises:
        DataError, EncodingError: see `sources.resolve`; also if there is too little text to split.
    """
    source = source or resolve(config, progress)
    key = json.dumps(corpus_key(source, config))
    if key not in _surveys:
        if len(_surveys) >= 8:
            _surveys.pop(next(iter(_surveys)))
        _surveys[key] = _survey(source, config, progress)
    return Corpus(config, source, _surveys[key])


def corpus_key(source: Source, config: DataConfig) -> list[Any]:
    """Plain values that are equal if two corpora have the same text in the same splits."""
    return [source.identity, config.encoding, config.text_field, config.clean, config.val_fraction]


_surveys: dict[str, Survey] = {}  # by identity and settings, so that a process surveys a text only once


def text_chunks(source: str, config: DataConfig, split: str | None = "train") -> Iterator[str]:
    """Yield the cleaned text of a split (None: of all splits) in chunks of about a million characters.

    See `Corpus.chunks`.

    Raises:
        DataError: see `open_corpus`.
    """
    corpus = open_corpus(config.model_copy(update={"source": source}))
    return (piece.text for piece in corpus.chunks(split))


def changed(name: str) -> DataError:
    """The error for a text that changed between the first and the second pass."""
    return DataError(f"{name}: changed while it was read; start again when nothing writes to it")


_LINE_END = re.compile(r"\n(?=\S)")


def _line_cut(text: str) -> int:
    """Index after the last line end that is followed by a character that is not white space; 0 if there is none.

    _line_cut("a\\nb\\n c") -> 2
    """
    end = len(text)
    while (at := text.rfind("\n", 0, end)) >= 0:
        if _LINE_END.match(text, at):
            return at + 1
        end = at
    return 0


def _chunk_cut(text: str) -> int:
    """The index at which a chunk may end; 0: wait for more text."""
    if (cut := _line_cut(text)) or len(text) < LONGEST:
        return cut
    return text.rfind("\n") + 1 or max(0, text.rfind(" "))


def _to_split(source: Source, part: str) -> bool:
    return part == "train" and "val" not in source.parts


def _mark_last(blocks: Iterable[str]) -> Iterator[tuple[str, bool]]:
    held: str | None = None
    for block in blocks:
        if held is not None:
            yield held, False
        held = block
    if held is not None:
        yield held, True


def _survey(source: Source, config: DataConfig, progress: Progress | None) -> Survey:
    documents = chars = reported = spelled = 0
    survey = Survey(0, 0)
    for part, read in source.parts.items():
        sides = _Sides(config.val_fraction) if _to_split(source, part) and not source.single else None
        before, known = chars, documents
        for blocks in read():
            start, digest, end = chars, blake2b(digest_size=8), ""
            for text in clean(blocks, config.clean):
                chars += len(text)
                spelled += (end + text).count(EOS)
                end = (end + text)[1 - len(EOS) :]
                if sides:
                    digest.update(text.encode())
                if progress and chars - reported > CHUNK:
                    progress(f"reading {source.name}", reported := chars, None)
            documents += chars > start
            if sides:
                sides.add(int.from_bytes(digest.digest(), "big"), chars - start)
        count = chars - before
        if not count:
            after = f" after cleaning ({', '.join(config.clean)})" if config.clean else ""
            where = "" if len(source.parts) == 1 else f" in its {part} split"
            raise DataError(f"{source.name}: no text{where}{after}; give a text")
        if sides and documents - known > 1:
            survey = Survey(0, 0, sides=sides.finish(source.name))
        elif _to_split(source, part):
            survey = Survey(0, 0, cut=_cut_at(source.name, count, config.val_fraction))
    if spelled:
        warnings.warn(
            f"{source.name}: contains {EOS} {counted(spelled, 'time')}, which is read as plain characters; "
            f"--data.split-at '{EOS}' makes it the special token between documents",
            stacklevel=2,
        )
    if config.split_at and documents == len(source.parts):
        warnings.warn(
            f"{source.name}: is one document, although it is split at {config.split_at!r}; write the mark as it is in "
            "the text before cleaning",
            stacklevel=2,
        )
    return replace(survey, documents=documents, chars=chars)


class _Sides:
    """Assigns documents to training or validation by their hashes, one after another."""

    def __init__(self, val_fraction: float):
        self.val_fraction = val_fraction
        self.limit = int(val_fraction * 2**64)
        self.sides = bytearray()
        self.sizes: dict[int, int] = {}  # hash -> characters of all its copies; at most FEW
        self.numbers = array("Q")  # hashes in order, while there are at most FEW different ones

    def add(self, number: int, chars: int) -> None:
        """Add the next document: its hash and its length."""
        self.sides.append(_EMPTY if not chars else _VAL if number < self.limit else _TRAIN)
        if len(self.sizes) > FEW:
            return
        self.numbers.append(number)
        if chars:
            self.sizes[number] = self.sizes.get(number, 0) + chars
        if len(self.sizes) > FEW:
            del self.numbers[:]

    def finish(self, name: str) -> bytes:
        """Return one byte per document, see `Survey.sides`. Raises DataError if all documents are equal."""
        if len(self.sizes) == 1:
            times = counted(len(self.sides) - self.sides.count(_EMPTY), "time")
            raise DataError(
                f"{name}: it is all the same text, {times}, so no document can be held out for validation; "
                "give more text"
            )
        if len(self.sizes) <= FEW:
            chosen = _choose_few(self.sizes, self.val_fraction)
            for index, number in enumerate(self.numbers):
                if self.sides[index] != _EMPTY:
                    self.sides[index] = _VAL if number in chosen else _TRAIN
        return bytes(self.sides)


def _cut_at(name: str, chars: int, val_fraction: float) -> int:
    cut = int((1 - val_fraction) * chars)
    if not 0 < cut < chars:
        raise DataError(
            f"{name}: {counted(chars, 'character')} cannot be split into training and "
            f"{val_fraction:.0%} validation text; give more text"
        )
    return cut


def _choose_few(sizes: dict[int, int], val_fraction: float) -> set[int]:
    """Choose the hashes of the documents for validation: at least one, but not all.

    sizes: hash -> characters, at least two.
    """
    target = val_fraction * sum(sizes.values())
    chosen, size = set(), 0
    for number in sorted(sizes):
        if size + sizes[number] / 2 < target:  # with it the size is nearer to the target
            chosen.add(number)
            size += sizes[number]
    if not chosen:
        chosen.add(min(sizes, key=lambda number: (sizes[number], number)))
    if len(chosen) == len(sizes):
        chosen.remove(max(sizes, key=lambda number: (sizes[number], number)))
    return chosen
