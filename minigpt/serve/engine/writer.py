"""Write the jobs of one model with continuous batching: jobs wait, join between two tokens, are written, and leave.

A turn writes one token of every text. Before it, jobs that are cancelled or late leave, and waiting jobs join. Their
prompts are read one after another, at most `READ` tokens in all, so that long prompts do not stop the texts that are
being written.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from minigpt.errors import UserError
from minigpt.model import GPT
from minigpt.serve.engine.batch import Batch
from minigpt.serve.engine.choose import choose, score
from minigpt.serve.engine.job import BusyError, Ended, Event, Failed, Job, Read, Score, Wrote
from minigpt.serve.engine.prefixes import Prefixes

READ = 512
"""Most prompt tokens per turn; a longer prompt has a turn of its own."""
AT_ONCE = 1 << 22
"""Most logits of a prompt that are computed together."""


@dataclass
class Counts:
    """Counts since the start, of all writers: tokens, turns, and how texts ended."""

    prompt: int = 0
    cached: int = 0
    written: int = 0
    turns: int = 0
    ended: dict[str, int] = field(default_factory=dict)


class Writer:
    """The jobs of one model; one thread at a time calls `turn`.

    Args:
        model: in evaluation mode.
        most: texts at once.
        prefixes: bytes for the beginnings of earlier texts.
        report: called with each job and event, in order.
        counts: counts the work.
    """

    def __init__(
        self, model: GPT, most: int, prefixes: int, report: Callable[[Job, Event], None], counts: Counts | None = None
    ):
        self.model, self.report, self.counts = model, report, counts or Counts()
        self.batch, self.prefixes = Batch(model, most), Prefixes(prefixes)
        self.waiting: deque[Job] = deque()
        self.jobs: list[Job] = []  # job i writes text i of the batch

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.jobs and not self.waiting

    def tidy(self, now: float) -> None:
        """Drop waiting jobs that are cancelled or too late. The caller makes sure that no job is added at the same
        time.
        """
        for job in [job for job in self.waiting if job.cancelled or now >= job.deadline]:
            self.waiting.remove(job)
            self.report(job, Failed(BusyError("too many texts are being written; this one had no turn in time", 5)))

    @torch.inference_mode()
    def turn(self, now: float) -> None:
        """Write one token of every text."""
        for job in [job for job in self.jobs if job.cancelled]:
            self._leave(job, "cancelled")
        for job in [job for job in self.jobs if now >= job.deadline]:
            self._end(job, "time")
        logits = [self.batch.step()] if self.jobs else []
        logits += self._join()
        if not logits:
            return
        self.counts.turns += 1
        together, jobs = torch.cat(logits), list(self.jobs)  # [B, V]
        scores = self._scores(together, jobs, chosen := choose(together, jobs))
        for job, id_, scored in zip(jobs, chosen, scores, strict=True):
            if isinstance(id_, UserError):
                self.fail(job, id_)
            else:
                self._push(job, id_, scored)

    def fail(self, job: Job, error: Exception) -> None:
        """End a running or waiting job with an error."""
        self.report(job, Failed(error))
        self._leave(job, "error")

    def fail_all(self, error: Exception) -> None:
        """End all jobs after an error of the model. The caller makes sure that no job is added at the same time."""
        for job in [*self.jobs, *self.waiting]:
            self.report(job, Failed(error))
        self.jobs.clear()
        self.waiting.clear()
        self.batch = Batch(self.model, self.batch.most)

    def _join(self) -> list[Tensor]:
        """Read prompts that wait; returns the logits [1, V] of each text that continues."""
        logits, read = [], 0
        while self.waiting and len(self.jobs) < self.batch.most and (read == 0 or read + self._length() <= READ):
            job = self.waiting[0]
            read += self._length(job)
            hidden = self._read(job)
            self.jobs.append(self.waiting.popleft())  # not earlier: if reading fails, `fail_all` must find the job
            if job.most == 0:
                self._end(job, "length")
            else:
                logits.append(self.batch.logits(hidden[-1:]))
        return logits

    def _length(self, job: Job | None = None) -> int:
        return min(len((job or self.waiting[0]).ids), self.batch.context)

    def _read(self, job: Job) -> Tensor:
        """Add a job's prompt to the batch; returns its hidden states [T, C]."""
        ids = job.ids[-self.batch.context :]
        known = self.prefixes.find(ids) if job.reuse else None
        job.text, hidden = self.batch.join(ids, known)
        job.generator = torch.Generator(hidden.device).manual_seed(job.seed)
        cached = len(known.ids) if known else 0
        self.counts.prompt += len(ids)
        self.counts.cached += cached
        self.report(job, Read(cached, self._prompt_scores(hidden, ids, job) if job.score_prompt else []))
        return hidden

    def _prompt_scores(self, hidden: Tensor, ids: list[int], job: Job) -> list[Score]:
        """Scores of all ids, from hidden states [T, C]; the first id has none."""
        found, size = [Score(ids[0], None, [])], max(1, AT_ONCE // self.model.config.padded_vocab_size)
        for start in range(0, len(ids) - 1, size):
            wanted = ids[start + 1 : start + 1 + size]
            logits = self.batch.logits(hidden[start : start + len(wanted)])
            found += score(logits, wanted, job.config.logprobs or 0)
        return found

    def _scores(self, logits: Tensor, jobs: list[Job], chosen: list[int | UserError]) -> list[Score | None]:
        """Scores of the chosen ids, for jobs that ask for log-probabilities."""
        found: list[Score | None] = [None] * len(jobs)
        pairs = [(row, id_) for row, id_ in enumerate(chosen) if isinstance(id_, int)]
        pairs = [(row, id_) for row, id_ in pairs if jobs[row].config.logprobs is not None]
        if pairs:
            most = max(jobs[row].config.logprobs or 0 for row, _ in pairs)
            scored = score(logits[[row for row, _ in pairs]], [id_ for _, id_ in pairs], most)
            for (row, _), each in zip(pairs, scored, strict=True):
                found[row] = each._replace(top=each.top[: jobs[row].config.logprobs])
        return found

    def _push(self, job: Job, id_: int, scored: Score | None) -> None:
        """Add a token to a job."""
        assert job.text is not None
        job.text.ids.append(id_)
        self.counts.written += 1
        piece, row = job.row.push(id_), job.row
        self.report(job, Wrote(piece, scored))
        if row.ended:
            self.report(job, Ended("", row.completion.reason))
            self._leave(job, row.completion.reason)
        elif job.new == job.most:
            self._end(job, "length")

    def _end(self, job: Job, reason: str) -> None:
        """End a text that could continue."""
        rest = job.row.end("time" if reason == "time" else "length")
        self.report(job, Ended(rest, job.row.completion.reason))
        self._leave(job, reason)

    def _leave(self, job: Job, reason: str) -> None:
        self.counts.ended[reason] = self.counts.ended.get(reason, 0) + 1
        if job not in self.jobs or job.text is None:
            return
        if job.reuse and (prefix := self.batch.cached_prefix(job.text)):
            self.prefixes.keep(prefix)
        row, last = self.jobs.index(job), self.jobs.pop()
        if last is not job:
            self.jobs[row] = last  # the batch does the same
        self.batch.leave(job.text)
