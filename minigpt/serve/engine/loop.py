"""Run the thread that writes all texts, next to the thread that answers clients.

It sleeps while there is nothing to write. Each model that has work gets a turn, one after another. The events of a turn
are passed on by one call of `post`, which gives them to the event loop.
"""

import threading
import time
from collections.abc import Callable, Sequence

from minigpt.model import GPT
from minigpt.serve.engine.job import BusyError, Event, Job, UnavailableError
from minigpt.serve.engine.writer import Counts, Writer
from minigpt.serve.limits import Limits

ENDING = "the server ends", 5
Calls = list[tuple[Job, Event]]


def tell_all(calls: Calls) -> None:
    """Call each job with its event."""
    for job, event in calls:
        job.tell(event)


class Engine:
    """Writes the jobs of any number of models.

    Args:
        limits: limits of the queue, and of what one model may use.
        clock: seconds; the jobs' deadlines use it.

    Attributes:
        post: gets the events of a turn, and can run `tell_all` in another thread (at first: in this one).
    """

    def __init__(self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic):
        self.limits, self.clock = limits or Limits(), clock
        self.post: Callable[[Calls], None] = tell_all
        self.writers: dict[GPT, Writer] = {}
        self.counts = Counts()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._happened: Calls = []

    def submit(self, model: GPT, jobs: Sequence[Job], texts: int | None = None) -> None:
        """Put jobs into the queue, all or none.

        Args:
            model: in evaluation mode.
            texts: how many the model may write at once (default: the limit).

        Raises:
            BusyError: the queue is full.
            UnavailableError: the engine is ending.
        """
        with self._changed:
            if self._stopping:
                raise UnavailableError(*ENDING)
            waiting = self.waiting
            if waiting and waiting + len(jobs) > self.limits.queue:
                raise BusyError(f"{waiting} texts wait already; try again later", 1 + waiting // self.limits.texts)
            if model not in self.writers:
                most = min(texts or self.limits.texts, self.limits.texts)
                self.writers[model] = Writer(model, most, self.limits.prefixes, self._note, self.counts)
            self.writers[model].waiting.extend(jobs)
            self._changed.notify()

    @property
    def waiting(self) -> int:
        """Texts that have not begun."""
        return sum(len(writer.waiting) for writer in [*self.writers.values()])

    @property
    def writing(self) -> int:
        """Texts that are being written."""
        return sum(len(writer.jobs) for writer in [*self.writers.values()])

    def forget(self, model: GPT) -> None:
        """Drop everything that belongs to a model, which has no jobs now."""
        with self._changed:
            self.writers.pop(model, None)

    def turn(self) -> bool:
        """Write one token of every text; False if there is nothing to do."""
        now = self.clock()
        with self._changed:
            busy = [writer for writer in self.writers.values() if not writer.idle]
            for writer in busy:
                writer.tidy(now)
        for writer in busy:
            try:
                writer.turn(now)
            except Exception as error:  # noqa: BLE001  memory that ran out, or a bug: the other models go on
                with self._changed:
                    writer.fail_all(error)
            self._tell()
        return bool(busy)

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="minigpt-engine", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """End after the current turn; unfinished texts fail. A signal handler may call it."""
        self._stopping = True
        with self._changed:
            self._changed.notify()

    def stop(self) -> None:
        """Call `end`, and wait for it."""
        self.end()
        if self._thread is not None:
            self._thread.join()

    def _note(self, job: Job, event: Event) -> None:
        if not job.cancelled:
            self._happened.append((job, event))

    def _tell(self) -> None:
        if self._happened:
            happened, self._happened = self._happened, []
            self.post(happened)

    def _run(self) -> None:
        while not self._stopping:
            if self.turn():
                continue
            with self._changed:
                self._changed.wait_for(lambda: self._stopping or any(not w.idle for w in self.writers.values()))
        with self._changed:
            for writer in self.writers.values():
                writer.fail_all(UnavailableError(*ENDING))
        self._tell()
