"""The table's rows of a store or a broker that fails at one point: each point, each way to fail."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states
from celery.exceptions import Ignore

from gwi_celery import ReliableTask, broker_for, store_for
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import BrokerUnusable, StoreUnavailable, StoreUnusable
from gwi_celery.headers import HOLDS_HEADER
from gwi_celery.integration import integration
from gwi_celery.reliability.ends import Counts, End
from gwi_celery.stores.base import JobRef, JobStatus, LockRef, Store
from gwi_celery.transport.settlement import Settlement
from tests.apps import fresh_app
from tests.threadworker import worker_in_thread
from tests.workers import dead_letters, drained, eventually

LOCK_TTL = 1.0


def _job(run: str) -> JobRef:
    return JobRef("t", "ends", f"run:{run}")


def _lock(run: str) -> LockRef:
    return LockRef("t", ("run", run))


class Faulty:
    """The store; before an operation it does what it was told to, once each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.faults: dict[str, list[Callable[[Store, str], Any]]] = {}
        self.run = ""

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.faults.get(name):
                self.faults[name].pop(0)(self.store, self.run)
            return operation(*args, **kwargs)

        return call


def unavailable(store: Store, run: str) -> None:
    raise StoreUnavailable("on purpose")


def unavailable_for_long(store: Store, run: str) -> None:
    """As long as the lease may last."""
    time.sleep(LOCK_TTL)
    raise StoreUnavailable("on purpose")


def unusable(store: Store, run: str) -> None:
    raise StoreUnusable("on purpose")


def freed(store: Store, run: str) -> None:
    assert store.force_release(_lock(run))


def cancelled(store: Store, run: str) -> None:
    assert store.cancel(_job(run), "on purpose")


@contextmanager
def no_publishing(
    monkeypatch: pytest.MonkeyPatch, *, after: int, times: int
) -> Iterator[list[int]]:
    """Refuse what is published ``after`` so many; how many were refused."""
    publish = EmbeddedBroker.publish
    refused, left = [0], [after]

    def refuse(self: EmbeddedBroker, *args: Any) -> int:
        if left[0] > 0:
            left[0] -= 1
        elif refused[0] < times:
            refused[0] += 1
            raise BrokerUnusable("on purpose")
        return publish(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(EmbeddedBroker, "publish", refuse)
        yield refused


@dataclass(frozen=True)
class Ran:
    """What the job saw as it began."""

    redelivered: bool
    copied: bool
    crashes: int


@dataclass
class Bench:
    app: Celery
    store: Faulty
    ran: list[Ran]

    def call(self, way: str, **options: Any) -> Any:
        kwargs = {"tenant_id": "t", "run_id": self.store.run, "way": way}
        return self.app.tasks["ends"].apply_async(kwargs=kwargs, **options)

    def settled(self, result: Any, state: str) -> Any:
        """The job's record, once no message is left; by then its caller sees ``state``."""
        eventually(lambda: drained(broker_for(self.app)), what="no message is left")
        assert result.state == state
        return self.store.get_job(_job(self.store.run))

    def dead(self) -> int:
        return len(dead_letters(broker_for(self.app)))


@pytest.fixture(scope="module")
def worked() -> Iterator[Bench]:
    """One worker for all of them: it takes its time to end."""
    app = fresh_app(lock_ttl=LOCK_TTL, contention_delay=0.05)
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
    faulty = Faulty(store_for(app))
    integration(app)._store = faulty  # type: ignore[assignment]
    ran: list[Ran] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="ends", max_retries=3)
    def job(self: Any, *, tenant_id: str, run_id: str, way: str) -> str:
        redelivered = bool(self.request.delivery_info["redelivered"])
        copied = HOLDS_HEADER in self.request.headers
        ran.append(Ran(redelivered, copied, self._running_job.record.crashes))
        self.step("before", lambda: 1)
        if way == "retries" and self.request.retries == 0:
            raise self.retry(countdown=0)
        if way == "raises":
            raise RuntimeError("on purpose")
        if way == "ignores":
            raise Ignore
        if way == "replaces":
            return str(self.replace(app.tasks["other"].si()))
        self.step("after", lambda: 2)
        return "done"

    @app.task(shared=False, name="other", acks_late=True)
    def other(*args: Any) -> str:
        return "another task's"

    with worker_in_thread(app):
        yield Bench(app, faulty, ran)
    app.close()


@pytest.fixture
def bench(worked: Bench) -> Bench:
    worked.store.run = uuid4().hex
    worked.store.faults.clear()
    worked.ran.clear()
    broker_for(worked.app).purge("celery.dead")
    return worked


#: What each way comes to by itself.
WAYS = {
    "returns": (JobStatus.SUCCEEDED, states.SUCCESS),
    "retries": (JobStatus.SUCCEEDED, states.SUCCESS),
    "raises": (JobStatus.FAILED, states.FAILURE),
    "ignores": (JobStatus.SUCCEEDED, states.PENDING),
    "replaces": (JobStatus.SUCCEEDED, states.SUCCESS),
}

#: A way, what happens before which operation of the store, and the row that it comes to. None: nobody
#: notices, since it is tried again.
CASES: list[tuple[str, str, Callable[[Store, str], Any], End | None]] = [
    ("returns", "claim", unavailable, End.STORE_UNAVAILABLE),
    ("returns", "claim", unusable, End.STORE_UNAVAILABLE),
    ("retries", "load", unavailable, None),
    ("retries", "load", unusable, End.FAILED),
    ("retries", "load", freed, End.LEASE_LOST),
    ("retries", "load", cancelled, End.CANCELLED),
    ("returns", "save", unavailable, None),
    ("returns", "save", unavailable_for_long, End.LEASE_LOST),
    ("returns", "save", unusable, End.FAILED),
    ("returns", "save", freed, End.LEASE_LOST),
    ("returns", "save", cancelled, End.CANCELLED),
    *((way, "finish", unavailable, None) for way in WAYS),
    *((way, "finish", unavailable_for_long, End.LEASE_LOST) for way in WAYS),
    *((way, "finish", unusable, End.UNRECORDED) for way in WAYS),
    *((way, "finish", freed, End.LEASE_LOST) for way in WAYS),
    *((way, "finish", cancelled, End.CANCELLED) for way in WAYS),
]


@pytest.mark.parametrize(
    ("way", "operation", "fault", "end"),
    CASES,
    ids=[f"{way}-{operation}-{fault.__name__}" for way, operation, fault, _ in CASES],
)
def test_a_store_that_fails(
    bench: Bench, way: str, operation: str, fault: Callable[[Store, str], Any], end: End | None
) -> None:
    status, state = WAYS[way]
    before = 2 if way == "retries" else 1
    bench.store.faults[operation] = [fault]

    result = bench.call(way)

    if end in (End.FAILED, End.CANCELLED):
        status, state = JobStatus(end.name.lower()), end.row.caller
    record = bench.settled(result, state)
    attempts = before + (end in (End.LEASE_LOST, End.UNRECORDED))
    assert not bench.store.faults[operation]
    assert (record.status, record.attempt) == (status, attempts)
    assert bench.store.get_lock(_lock(bench.store.run)) is None
    assert bench.dead() == (status is JobStatus.FAILED)
    last = bench.ran[-1] if bench.ran else None
    if end in (End.LEASE_LOST, End.UNRECORDED, End.STORE_UNAVAILABLE):
        assert last is not None
        assert last.redelivered == (end.row.message is Settlement.NACKED)
        assert last.copied == end.row.copy
        assert last.crashes == (end.row.counts is Counts.CRASH)
    elif last is not None:
        assert last == Ran(redelivered=False, copied=False, crashes=0)


def test_a_lock_that_can_not_be_freed_runs_out(bench: Bench) -> None:
    bench.store.faults["release"] = [unusable]
    record = bench.settled(bench.call("retries"), states.SUCCESS)
    assert (record.status, record.attempt) == (JobStatus.SUCCEEDED, 2)
    assert bench.ran[-1] == Ran(redelivered=False, copied=True, crashes=1)


#: A way, where the store fails, how many attempts that takes, and what each run of it saw.
NO_COPY = [
    ("returns", "claim", 1, [Ran(True, False, 0)]),
    ("returns", "finish", 2, [Ran(False, False, 0), Ran(False, True, 1)]),  # once the lock is free
    ("retries", None, 3, [Ran(False, False, 0), Ran(True, False, 0), Ran(False, False, 0)]),
    ("replaces", None, 1, [Ran(False, False, 0)]),  # then it is answered from its record
]


@pytest.mark.parametrize(("way", "fails", "attempts", "ran"), NO_COPY)
def test_what_can_not_be_published_is_redelivered(
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    fails: str | None,
    attempts: int,
    ran: list[Ran],
) -> None:
    row = End.NO_COPY.row
    assert (row.message, row.caller) == (Settlement.NACKED, states.PENDING)
    if fails:
        bench.store.faults[fails] = [unusable]

    with no_publishing(monkeypatch, after=1, times=1) as refused:
        result = bench.call(way)
        record = bench.settled(result, states.SUCCESS)

    assert result.get() == ("another task's" if way == "replaces" else "done")
    assert refused == [1]
    assert (record.status, record.attempt) == (JobStatus.SUCCEEDED, attempts)
    if fails == "finish" and bench.ran[-1].redelivered:  # so late that its lock was free already
        ran = [*ran[:-1], Ran(True, False, 1)]
    assert bench.ran == ran
    assert bench.dead() == 0


def test_a_callback_that_can_not_be_sent(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    row = End.NO_CALLBACK.row
    # Celery tries the callback once more than its message.
    with no_publishing(monkeypatch, after=1, times=2) as refused:
        result = bench.call("returns", link=bench.app.tasks["other"].s().set(task_id="callback"))
        record = bench.settled(result, row.caller)
    assert refused == [2]
    assert record.status is JobStatus(row.record.value)
    assert bench.dead() == (row.message is Settlement.DEAD_LETTERED)

    assert broker_for(bench.app).redrive("celery") == 1

    callback = bench.app.AsyncResult("callback")
    eventually(lambda: callback.state == states.SUCCESS, what="the redrive has sent it")
    assert len(bench.ran) == 1
