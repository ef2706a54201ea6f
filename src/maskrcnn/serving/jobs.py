"""The queue: one picture at work at a time in a thread, and results that are forgotten by number, size and age.

    waiting -> running -> done | failed        a job that nobody asks for, or that is dropped, is gone altogether

Everything is in memory. A job is known by a name that cannot be guessed, so that nobody sees another's picture.
"""

from __future__ import annotations

import logging
import secrets
import textwrap
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import Limits

_log = logging.getLogger("maskrcnn")

State = Literal["waiting", "running", "done", "failed"]
Progress = Callable[[str, int, int], None]  # (what is being done, steps done, steps in all)
LONGEST_FAULT = 300  # characters


class Busy(Exception):
    """As many jobs wait as may."""


class Dropped(Exception):
    """The job at work is no longer wanted."""


@dataclass(frozen=True)
class Order:
    """What a client asks for: the bytes of a picture file, what it is called, and by which detector and limits."""

    picture: bytes
    name: str
    weights: str
    limits: Limits


@dataclass(frozen=True)
class Product:
    """What a client gets: whole files, and how many objects were found."""

    found: int
    report: bytes
    overlay: bytes
    coco: bytes
    polygons: bytes

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.report) + len(self.overlay) + len(self.coco) + len(self.polygons)


Work = Callable[[Order, Progress], Product]


@dataclass(frozen=True, kw_only=True)
class Keeping:
    """How much is kept, and for how long."""

    waiting: int = 8  # jobs in the queue
    results: int = 20  # the oldest go first
    bytes: int = 512 * 2**20  # of results; the newest is kept whatever its size
    age: float = 30 * 60  # seconds after the end of a job
    patience: float = 120  # seconds without a question about a job that is not done: its client has gone away.
    # Browsers let a page that is out of sight ask but once a minute.


@dataclass
class Job:
    """One order on its way. Changed by `Jobs` alone, under its lock."""

    id: str
    order: Order | None  # None once it is done: the upload is not kept
    name: str
    asked: float  # seconds, when a client last wanted to know of it
    begun: float
    state: State = "waiting"
    step: str = "waiting"
    done: int = 0
    total: int = 0
    ended: float | None = None
    error: str | None = None
    product: Product | None = None


class Jobs:
    """Orders in, products out, one at a time and in their order.

    work: makes the product; called in the queue's own thread, and told through its second argument where to report to,
    which raises `Dropped` once nobody wants the product. clock: seconds.
    """

    def __init__(
        self,
        work: Work,
        keeping: Keeping | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.keeping = keeping or Keeping()
        self._work, self._clock = work, clock
        self._jobs: dict[str, Job] = {}  # in the order in which they came
        self._change = threading.Condition()
        self._is_open = True
        self._thread = threading.Thread(target=self._run, name="maskrcnn detector", daemon=True)
        self._thread.start()

    def accept(self, order: Order) -> Job:
        """Put an order into the queue. Errors: `Busy`."""
        now = self._clock()
        with self._change:
            self._forget(now)
            if sum(job.state == "waiting" for job in self._jobs.values()) >= self.keeping.waiting:
                raise Busy
            job = Job(secrets.token_urlsafe(16), order, order.name, now, now)
            self._jobs[job.id] = job
            self._change.notify()
        return job

    def find(self, job_id: str) -> Job | None:
        """The job of that name, which is thereby known to be wanted still; None where there is none."""
        now = self._clock()
        with self._change:
            self._forget(now)
            job = self._jobs.get(job_id)
            if job is not None:
                job.asked = now
            return job

    def ahead(self, job: Job) -> int:
        """How many jobs come before this one, the one at work among them."""
        with self._change:
            unfinished = [each for each in self._jobs.values() if each.state in ("waiting", "running")]
            return unfinished.index(job) if job in unfinished else 0

    def drop(self, job_id: str) -> bool:
        """Forget a job, finished or not; whether there was one."""
        with self._change:
            return self._jobs.pop(job_id, None) is not None

    def sweep(self) -> None:
        """Forget what is too old, too much, or wanted by nobody."""
        with self._change:
            self._forget(self._clock())

    def close(self, patience: float = 3.0) -> bool:
        """Forget everything, and wait up to `patience` seconds for the job at work to notice; whether it did."""
        with self._change:
            self._is_open = False
            self._jobs.clear()
            self._change.notify()
        self._thread.join(patience)
        return not self._thread.is_alive()

    def _forget(self, now: float) -> None:
        ended, room = 0, self.keeping.bytes
        for job in sorted(self._jobs.values(), key=lambda job: job.ended or now, reverse=True):  # the newest first
            if job.ended is None:
                wanted = now - job.asked <= self.keeping.patience
            else:
                room -= job.product.size if job.product else 0
                ended += 1
                fits = ended == 1 or (ended <= self.keeping.results and room >= 0)
                wanted = fits and now - job.ended <= self.keeping.age
            if not wanted:
                del self._jobs[job.id]

    def _run(self) -> None:
        while (job := self._next()) is not None:
            self._finish(job, *self._made(job))
            del job  # else the last upload or result would live on until the next

    def _next(self) -> Job | None:
        with self._change:
            while self._is_open:
                self._forget(self._clock())
                if job := next((each for each in self._jobs.values() if each.state == "waiting"), None):
                    job.state = "running"
                    return job
                self._change.wait()
        return None

    def _made(self, job: Job) -> tuple[Product | None, str | None]:
        """(product, None), or (None, one line that tells why there is none)."""
        assert job.order is not None

        def progress(step: str, done: int, total: int) -> None:
            with self._change:
                self._forget(self._clock())
                if job.id not in self._jobs:
                    raise Dropped
                job.step, job.done, job.total = step, done, total

        try:
            progress("starting", 0, 0)
            return self._work(job.order, progress), None
        except Dropped:
            return None, "dropped"
        except InputError as error:
            return None, str(error)
        except Exception as error:  # a fault of ours, or memory that does not suffice: the next job may do better
            if isinstance(error, MemoryError) or "memory" in str(error):
                return None, "out of memory; expected a smaller picture, or a smaller size"
            _log.exception("a job failed")
            text = textwrap.shorten(str(error), LONGEST_FAULT, placeholder=" ...")
            return None, f"{type(error).__name__}: {text} (unexpected)"

    def _finish(self, job: Job, product: Product | None, error: str | None) -> None:
        with self._change:
            job.order, job.product, job.error = None, product, error
            job.state, job.ended = ("failed" if product is None else "done"), self._clock()
            self._forget(self._clock())
