"""The table's rows of a store or a broker that fails at one point: each point, each way to fail."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states
from celery.contrib.testing.worker import start_worker
from celery.exceptions import Ignore

from gwi_celery import ReliableTask, broker_for, setup, store_for
from gwi_celery.app import integration
from gwi_celery.brokers.embedded import EmbeddedBroker
from gwi_celery.errors import BrokerUnavailable, StoreUnavailable, StoreUnusable
from gwi_celery.reliability.ends import Counts, End, Record
from gwi_celery.reliability.outcome import Settlement
from gwi_celery.stores.base import JobRef, JobStatus, LockRef, Store
from gwi_celery.transport.headers import HOLDS_HEADER
from tests.workers import dead_letters, drained, eventually

JOB = JobRef("t", "ends", "run:r")
LOCK = LockRef("t", ("run", "r"))


class Faulty:
    """The store; before an operation it does what it was told to, once each."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.faults: dict[str, list[Callable[[Store], Any]]] = {}

    def __getattr__(self, name: str) -> Any:
        operation = getattr(self.store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.faults.get(name):
                self.faults[name].pop(0)(self.store)
            return operation(*args, **kwargs)

        return call


def unavailable(store: Store) -> None:
    raise StoreUnavailable("on purpose")


def unusable(store: Store) -> None:
    raise StoreUnusable("on purpose")


def freed(store: Store) -> None:
    assert store.force_release(LOCK)


def cancelled(store: Store) -> None:
    assert store.cancel(JOB, "on purpose")


@dataclass
class Bench:
    app: Celery
    store: Faulty
    #: Of each time that the job ran: whether it was redelivered, and how often its copy waited.
    ran: list[tuple[bool, int]]

    def call(self, way: str, **options: Any) -> Any:
        kwargs = {"tenant_id": "t", "run_id": "r", "way": way}
        return self.app.tasks["ends"].apply_async(kwargs=kwargs, **options)

    def settled(self, result: Any, state: str) -> Any:
        """The job's record, once its caller sees ``state`` and no message is left."""
        eventually(lambda: result.state == state, what=f"{state}, not {result.state}")
        eventually(lambda: drained(broker_for(self.app)), what="no message is left")
        return self.store.get_job(JOB)

    def dead(self) -> int:
        return len(dead_letters(broker_for(self.app)))


@pytest.fixture
def bench() -> Iterator[Bench]:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    name = f"embedded://:memory:/{uuid4().hex}"
    setup(app, broker_url=name, store_url=name, lock_ttl=1.0, contention_delay=0.05)
    app.conf.task_publish_retry_policy = {"max_retries": 1, "interval_start": 0}
    faulty = Faulty(store_for(app))
    integration(app)._store = faulty  # type: ignore[assignment]
    ran: list[tuple[bool, int]] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="ends", max_retries=3)
    def job(self: Any, *, tenant_id: str, run_id: str, way: str) -> str:
        info, headers = self.request.delivery_info, self.request.headers
        ran.append((bool(info["redelivered"]), int(headers.get(HOLDS_HEADER) or 0)))
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

    @app.task(shared=False, name="other")
    def other(*args: Any) -> str:
        return "another task's"

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
        yield Bench(app, faulty, ran)
    app.close()


#: What each way comes to by itself.
WAYS = {
    "returns": (JobStatus.SUCCEEDED, states.SUCCESS),
    "retries": (JobStatus.SUCCEEDED, states.SUCCESS),
    "raises": (JobStatus.FAILED, states.FAILURE),
    "ignores": (JobStatus.SUCCEEDED, states.PENDING),
    "replaces": (JobStatus.SUCCEEDED, states.SUCCESS),
}

#: A way, what happens before which operation of the store, and the row that this comes to.
CASES = [
    ("returns", "claim", [unavailable], End.STORE_AWAY),
    ("returns", "claim", [unusable, unusable], End.STORE_AWAY),
    ("retries", "load", [unusable], End.FAILED),
    ("retries", "load", [freed], End.LEASE_LOST),
    ("retries", "load", [cancelled], End.CANCELLED),
    ("returns", "save", [unusable], End.FAILED),
    ("returns", "save", [freed], End.LEASE_LOST),
    ("returns", "save", [cancelled], End.CANCELLED),
    *((way, "finish", [unusable], End.UNRECORDED) for way in WAYS),
    *((way, "finish", [freed], End.LEASE_LOST) for way in WAYS),
    *((way, "finish", [cancelled], End.CANCELLED) for way in WAYS),
    ("returns", "save", [unavailable] * 20, End.LEASE_LOST),
    ("retries", "load", [unavailable] * 20, End.LEASE_LOST),
    *((way, "finish", [unavailable] * 20, End.LEASE_LOST) for way in ("returns", "ignores")),
    # For a moment only: it is tried again, and nobody notices.
    ("returns", "save", [unavailable], None),
    ("retries", "load", [unavailable], None),
    ("returns", "finish", [unavailable], None),
    ("raises", "finish", [unavailable], None),
]


@pytest.mark.parametrize(
    ("way", "operation", "faults", "end"),
    CASES,
    ids=[f"{w}-{o}-{f[0].__name__}{len(f)}" for w, o, f, _ in CASES],
)
def test_a_store_that_fails(
    bench: Bench, way: str, operation: str, faults: list[Any], end: End | None
) -> None:
    bench.store.faults[operation] = list(faults)
    result = bench.call(way)
    status, state = WAYS[way]
    attempts, crashes, before = 1, 0, 1
    if way == "retries":
        attempts, before = 2, 2
    if end is not None and end.row.record in (Record.FAILED, Record.KEPT) and (
        end is End.CANCELLED or end.row.record is Record.FAILED
    ):
        status = JobStatus.CANCELLED if end is End.CANCELLED else JobStatus.FAILED
        state = end.row.caller
    elif end is not None:  # it goes on by itself
        attempts += end.row.counts is not Counts.NOTHING
        crashes += end.row.counts is Counts.CRASH

    record = bench.settled(result, state)

    assert not bench.store.faults[operation] or end is End.LEASE_LOST
    assert (record.status, record.attempt, record.crashes) == (status, attempts, crashes)
    assert bench.store.get_lock(LOCK) is None
    assert bench.dead() == (status is JobStatus.FAILED)
    if attempts > before or end is End.STORE_AWAY:
        redelivered, holds = bench.ran[-1] if end is not End.STORE_AWAY else bench.ran[0]
        assert redelivered == (end.row.message is Settlement.NACKED) if end else True
        assert (holds > 0) == end.row.copy if end else True
