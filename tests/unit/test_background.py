"""Threads for what runs beside: on time, after errors, after a fork, and gone when idle."""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator

import pytest

from gwi_celery import background
from gwi_celery.background import NEVER, Scheduler, Ticker

PATIENCE = 30.0


@pytest.fixture
def scheduler() -> Iterator[Scheduler]:
    made = Scheduler("test-jobs")
    yield made
    made.stop(PATIENCE)


def test_jobs_are_called_by_their_times_and_survive_errors(scheduler: Scheduler) -> None:
    began = time.monotonic()
    done: queue.Queue[str] = queue.Queue()

    def fail() -> None:
        raise RuntimeError("on purpose")

    scheduler.run(lambda: done.put("later"), began + 0.2)
    scheduler.run(fail)
    scheduler.run(lambda: done.put("soon"))
    assert scheduler.flush(PATIENCE), "what is for later is left out"
    assert done.get_nowait() == "soon"
    assert done.get(timeout=PATIENCE) == "later"
    assert time.monotonic() - began >= 0.2


def test_flush_and_stop_give_up_on_a_job_that_hangs_and_drop_the_rest(scheduler: Scheduler) -> None:
    release, dropped = threading.Event(), threading.Event()
    scheduler.run(lambda: release.wait(PATIENCE))
    scheduler.run(dropped.set)
    assert not scheduler.flush(0.05)
    scheduler.stop(0.05)
    release.set()
    again = threading.Event()
    scheduler.run(again.set)
    assert again.wait(PATIENCE), "used again, it starts again"
    assert not dropped.is_set()


def test_an_earlier_time_wakes_a_thread_that_sleeps(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks: queue.Queue[float] = queue.Queue()

    def tick() -> float:
        ticks.put(time.monotonic())
        if ticks.qsize() == 1:
            raise RuntimeError("on purpose")
        return NEVER

    monkeypatch.setattr(background, "_RETRY", 0.01)
    monkeypatch.setattr(background, "_LINGER", 0.05)
    ticker = Ticker("test-ticker", tick)
    ticker.wake(time.monotonic() + 3600)
    ticker.wake()
    ticks.get(timeout=PATIENCE)
    ticks.get(timeout=PATIENCE)  # tried again after the error
    deadline = time.monotonic() + PATIENCE
    while any(t.name == "test-ticker" for t in threading.enumerate()):
        assert time.monotonic() < deadline, "it ends when it has nothing to do"
        time.sleep(0.01)
    ticker.wake()
    ticks.get(timeout=PATIENCE)
    ticker.stop(PATIENCE)


def test_a_forked_child_begins_anew(scheduler: Scheduler) -> None:
    release = threading.Event()
    scheduler.run(lambda: release.wait(PATIENCE))
    parents = threading.Event()
    scheduler.run(parents.set)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            own = threading.Event()
            assert scheduler.flush(0), "what the parent waits for is not the child's"
            scheduler.run(own.set)
            code = 0 if own.wait(PATIENCE) and not parents.is_set() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    release.set()
    assert parents.wait(PATIENCE)
