"""Encode a corpus to token files: one thread reads, cleans and counts; others encode. The ids keep the text's order.

Text is cut only where `safe_cut` says that this does not change the ids. So the ids are the same as if each document
were encoded as a whole.
"""

import contextlib
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from minigpt.data.corpus import Corpus
from minigpt.data.statistics import TextStatistics
from minigpt.data.token_file import TokenWriter
from minigpt.download import Progress
from minigpt.tokenizers.cutter import CHUNK, Cutter

MAX_UNCUT = 16 * CHUNK
"""A stretch of this many characters without a safe cut is cut anyway, to limit memory. It may change ids at the cut."""


class Encoder(Protocol):
    """The methods of a tokenizer that preparing needs. `encode_array` is called from several threads."""

    kind: str
    vocab_size: int

    @property
    def eos_id(self) -> int | None:
        """The id that ends a document, if there is one."""
        ...

    @property
    def fingerprint(self) -> str:
        """Hex digest that is different for every tokenizer."""
        ...

    def encode_array(self, text: str) -> np.ndarray:
        """The ids of a text."""
        ...

    def save(self, path: Path) -> None:
        """Write tokenizer.json."""
        ...


def encode_corpus(
    corpus: Corpus,
    tokenizer: Encoder,
    safe_cut: Callable[[str], int],
    folder: Path,
    progress: Progress | None,
    workers: int,
) -> dict[str, dict[str, Any]]:
    """Write FOLDER/SPLIT.tokens for each split. Returns the figures of each split.

    Arguments are those of `prepare`; `folder` must exist and be empty.
    """
    eos = tokenizer.eos_id if corpus.many else None
    done = reported = 0
    with contextlib.ExitStack() as stack:
        queue = _Queue(stack.enter_context(ThreadPoolExecutor(workers)), tokenizer, 2 * workers)
        encoders = {
            split: _SplitEncoder(
                stack.enter_context(
                    TokenWriter(folder / f"{split}.tokens", tokenizer.vocab_size, tokenizer.fingerprint)
                ),
                queue,
                safe_cut,
                eos,
            )
            for split in corpus.splits
        }
        for piece in corpus.pieces():
            encoders[piece.split].feed(piece.text, piece.ends)
            done += len(piece.text)
            if progress and done - reported > CHUNK // 2:
                progress(f"encoding {corpus.source.name}", reported := done, corpus.survey.chars)
        for encoder in encoders.values():
            encoder.finish()
        queue.drain()
        if progress:
            progress(f"encoding {corpus.source.name}", done, corpus.survey.chars)
    return {
        split: {"tokens": encoder.writer.count, **encoder.statistics.figures()} for split, encoder in encoders.items()
    }


Job = list[tuple[str, bool]]
"""Texts to encode in order: (text, whether the end-of-text id follows it)."""


class _Queue:
    """Jobs that threads encode. Their ids are written in the order of the jobs."""

    def __init__(self, pool: ThreadPoolExecutor, tokenizer: Encoder, length: int):
        self.pool, self.tokenizer, self.length = pool, tokenizer, length
        self.waiting: deque[tuple[TokenWriter, Future[list[np.ndarray]]]] = deque()

    def put(self, writer: TokenWriter, job: Job, eos: int | None) -> None:
        """Add a job. If too many are waiting, wait for the oldest one."""
        self.waiting.append((writer, self.pool.submit(self._ids, job, eos)))
        if len(self.waiting) > self.length:
            self._write()

    def drain(self) -> None:
        """Wait for all jobs."""
        while self.waiting:
            self._write()

    def _write(self) -> None:
        writer, future = self.waiting.popleft()
        for ids in future.result():
            writer.append(ids)

    def _ids(self, job: Job, eos: int | None) -> list[np.ndarray]:
        parts = []
        for text, ends in job:
            parts.append(self.tokenizer.encode_array(text))
            if ends and eos is not None:
                parts.append(np.array([eos], parts[-1].dtype))
        return [np.concatenate(parts)]


class _SplitEncoder:
    """Collects the text of one split into jobs of about a million characters."""

    def __init__(self, writer: TokenWriter, queue: _Queue, safe_cut: Callable[[str], int], eos: int | None):
        self.writer, self.queue, self.eos = writer, queue, eos
        self.statistics = TextStatistics()
        self.cutter = Cutter(safe_cut, longest=MAX_UNCUT)  # keeps text of the current document until it can be cut
        self.job: Job = []
        self.job_size = 0

    def feed(self, text: str, ends: bool) -> None:
        """Add the next piece."""
        self.statistics.add(text, ends)
        if piece := self.cutter.end(text) if ends else self.cutter.add(text):
            self._put(piece, ends)

    def finish(self) -> None:
        """Encode the rest, after the last piece."""
        if rest := self.cutter.end():
            self._put(rest, ends=False)
        if self.job:
            self.queue.put(self.writer, self.job, self.eos)
            self.job = []

    def _put(self, text: str, ends: bool) -> None:
        self.job.append((text, ends))
        self.job_size += len(text)
        if self.job_size >= CHUNK // 2:
            self.queue.put(self.writer, self.job, self.eos)
            self.job, self.job_size = [], 0
