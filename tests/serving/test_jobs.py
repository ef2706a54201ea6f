"""One job at a time, in order; whatever goes wrong with one, the next is done; nothing is kept longer than told."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable

import pytest

from maskrcnn.errors import InputError
from maskrcnn.model.mask_rcnn import Limits
from maskrcnn.serving.jobs import Busy, Dropped, Job, Jobs, Keeping, Order, Product, Progress


def order(name: str = "a.png") -> Order:
    return Order(b"picture", name, "tiny", Limits())


def product(report: bytes = b"report") -> Product:
    return Product(1, report, b"", b"", b"")


def ended(jobs: Jobs, job: Job, patience: float = 5.0) -> Job:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        found = jobs.find(job.id)
        assert found is not None
        if found.ended is not None:
            return found
        time.sleep(0.002)
    raise AssertionError(f"{job.name} is still {job.state}")


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Held:
    """Work that waits until it is let go."""

    def __init__(self) -> None:
        self.began, self.go = threading.Semaphore(0), threading.Event()
        self.ends: list[str] = []

    def __call__(self, order: Order, progress: Progress) -> Product:
        self.began.release()
        try:
            while not self.go.wait(0.002):
                progress("detecting", 1, 2)
        except Dropped:
            self.ends.append(f"{order.name} dropped")
            raise
        self.ends.append(f"{order.name} done")
        return product()


def test_jobs_are_done_one_after_the_other_and_in_order() -> None:
    work = Held()
    jobs = Jobs(work)
    first, second, third = (jobs.accept(order(name)) for name in "abc")
    assert work.began.acquire(timeout=5)
    assert (first.state, second.state, third.state) == ("running", "waiting", "waiting")
    assert [jobs.ahead(job) for job in (first, second, third)] == [0, 1, 2]
    assert not work.began.acquire(timeout=0.05)  # the others wait
    work.go.set()
    assert ended(jobs, third).state == "done"
    assert work.ends == ["a done", "b done", "c done"]
    assert first.order is None and first.product == product()
    jobs.close()


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("cannot be read", file="a.png"), "a.png: cannot be read"),
        (ZeroDivisionError("x\n" * 500), "ZeroDivisionError: x x"),
        (MemoryError(), "out of memory; expected a smaller picture"),
        (RuntimeError("[enforce fail] can't allocate memory: you tried"), "out of memory; expected a smaller picture"),
    ],
)
def test_a_job_that_fails_is_one_line_and_the_next_is_done(error: Exception, line: str) -> None:
    def work(order: Order, progress: Progress) -> Product:
        if order.name == "bad":
            raise error
        return product()

    jobs = Jobs(work)
    bad, good = jobs.accept(order("bad")), jobs.accept(order("good"))
    assert ended(jobs, good).state == "done"
    assert bad.state == "failed" and bad.product is None and bad.order is None
    assert bad.error is not None and bad.error.startswith(line) and "\n" not in bad.error and len(bad.error) < 400
    jobs.close()


def test_a_job_dropped_in_the_middle_makes_room_and_leaves_nothing() -> None:
    work = Held()
    jobs = Jobs(work)
    first, second = jobs.accept(order("a")), jobs.accept(order("b"))
    assert work.began.acquire(timeout=5)
    assert jobs.drop(first.id)
    assert not jobs.drop(first.id)
    assert work.began.acquire(timeout=5)  # the second
    assert jobs.find(first.id) is None
    work.go.set()
    ended(jobs, second)
    assert work.ends == ["a dropped", "b done"]
    jobs.close()


def test_a_job_dropped_while_it_waits_is_never_begun() -> None:
    work = Held()
    jobs = Jobs(work)
    first, second, third = (jobs.accept(order(name)) for name in "abc")
    assert work.began.acquire(timeout=5)
    assert jobs.drop(second.id)
    work.go.set()
    ended(jobs, third)
    assert work.ends == ["a done", "c done"] and first.state == "done"
    jobs.close()


def test_a_job_that_nobody_asks_for_is_dropped() -> None:
    work, clock = Held(), Clock()
    jobs = Jobs(work, Keeping(patience=10), clock)
    gone, wanted = jobs.accept(order("gone")), jobs.accept(order("wanted"))
    assert work.began.acquire(timeout=5)
    clock.now += 9
    assert jobs.find(wanted.id) is wanted
    clock.now += 9  # 18 s since anybody asked for the first
    assert work.began.acquire(timeout=5)
    assert jobs.find(gone.id) is None and wanted.state == "running"
    work.go.set()
    ended(jobs, wanted)
    assert work.ends == ["gone dropped", "wanted done"]
    jobs.close()


def test_no_more_jobs_wait_than_may() -> None:
    work = Held()
    jobs = Jobs(work, Keeping(waiting=2))
    jobs.accept(order())
    assert work.began.acquire(timeout=5)
    last = [jobs.accept(order()) for _ in range(2)][-1]
    with pytest.raises(Busy):
        jobs.accept(order())
    work.go.set()
    ended(jobs, last)
    ended(jobs, jobs.accept(order()))
    jobs.close()


def done_jobs(jobs: Jobs, clock: Clock, count: int) -> list[Job]:
    made = []
    for _ in range(count):
        clock.now += 1
        made.append(ended(jobs, jobs.accept(order())))
    return made


def kept(jobs: Jobs, made: list[Job]) -> list[bool]:
    return [jobs.find(job.id) is not None for job in made]


@pytest.mark.parametrize(
    ("keeping", "expected"),
    [
        (Keeping(results=2), [False, False, True, True]),
        (Keeping(bytes=250), [False, False, True, True]),
        (Keeping(bytes=10), [False, False, False, True]),  # the newest is kept whatever its size
        (Keeping(), [True, True, True, True]),
    ],
)
def test_the_oldest_results_go_first(keeping: Keeping, expected: list[bool]) -> None:
    clock = Clock()
    jobs = Jobs(lambda order, progress: product(b"x" * 100), keeping, clock)
    made = done_jobs(jobs, clock, 4)
    assert kept(jobs, made) == expected
    jobs.close()


def test_results_are_forgotten_by_age_though_asked_for() -> None:
    clock = Clock()
    jobs = Jobs(lambda order, progress: product(), Keeping(age=60), clock)
    made = done_jobs(jobs, clock, 2)
    clock.now += 59.5
    assert kept(jobs, made) == [False, True]
    clock.now += 1
    jobs.sweep()
    assert kept(jobs, made) == [False, False]
    jobs.close()


def collected(reference: Callable[[], object], patience: float = 5.0) -> bool:
    deadline = time.monotonic() + patience
    while reference() is not None and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.005)
    return reference() is None


def test_uploads_and_results_leave_memory() -> None:
    jobs = Jobs(lambda order, progress: product())
    given = order()
    upload = weakref.ref(given)
    job = jobs.accept(given)
    del given
    result = weakref.ref(ended(jobs, job).product)  # type: ignore[arg-type]
    assert collected(upload) and result() is not None
    jobs.drop(job.id)
    del job
    assert collected(result)
    jobs.close()


def test_closing_ends_the_thread_in_the_middle_of_a_job() -> None:
    work = Held()
    jobs = Jobs(work)
    jobs.accept(order())
    assert work.began.acquire(timeout=5)
    assert jobs.close() and work.ends == ["a.png dropped"]


def test_closing_does_not_wait_for_work_that_does_not_listen() -> None:
    go = threading.Event()
    jobs = Jobs(lambda order, progress: product() if go.wait(10) else product())
    jobs.accept(order())
    time.sleep(0.05)
    assert not jobs.close(patience=0.05)
    go.set()
    assert jobs.close()


def test_names_cannot_be_guessed() -> None:
    jobs = Jobs(lambda order, progress: product())
    names = {jobs.accept(order()).id for _ in range(5)}
    assert len(names) == 5 and min(map(len, names)) >= 22
    assert jobs.find("") is None
    jobs.close()
