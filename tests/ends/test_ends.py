"""Every end of the table, in every pool, on each store: record, caller, message and counts as it says.

``make test`` has prefork on SQLite: of all pools it can end jobs in most ways.

One worker for each pool and store meets them all, and is ended by a cold shutdown; the next one runs
a good job at the end.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from celery import states

from gwi_celery import broker_for, store_for
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.reliability.ends import Counts, End, Record
from gwi_celery.stores.base import JobRef, JobStatus, LockRef
from gwi_celery.transport.settlement import Settlement
from tests.apps import imported
from tests.machine import PATIENCE
from tests.service.pushing import PushSubscription, Service
from tests.workers import Worker, dead_letters, drained, eventually

pytestmark = pytest.mark.acceptance

APP = "tests.ends.jobs"
POOLS = ["prefork", "threads", "gevent", "solo", "push"]
#: Pools that can end a job from outside.
ENDS_JOBS = frozenset({"prefork", "gevent"})
PROCESSES = frozenset({"prefork", "push"})


@dataclass(frozen=True)
class Case:
    """A way to end, and the row of the table that it comes to."""

    kind: str
    end: End
    #: Pools that can; in the others the job runs to its end.
    pools: frozenset[str] = frozenset(POOLS)
    #: Where they can't: none of it is tried.
    elsewhere: bool = True
    attempts: int = 1
    crashes: int = 0
    #: The caller's state, where the row leaves it to what follows.
    state: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


CASES = [
    # Recording that of what an attempt has left takes a claim.
    Case("expires", End.REVOKED_BEFORE, attempts=2),
    Case("returns", End.SUCCEEDED),
    Case("raises", End.FAILED),
    Case("no-json", End.NO_JSON),
    Case("exits", End.EXITED),
    Case("interrupts", End.EXITED),
    Case("retries", End.SUCCEEDED, attempts=2),
    Case("retries-otherwise", End.SUCCEEDED, attempts=2),
    Case("replaces", End.REPLACED, state=states.SUCCESS),
    Case("ignores", End.IGNORED),
    Case("rejects", End.REJECTED),
    Case("requeues", End.SUCCEEDED, attempts=2),
    Case("soft-limit", End.SOFT_LIMIT, pools=PROCESSES, options={"soft_time_limit": 1}),
    Case("hard-limit", End.HARD_LIMIT, pools=PROCESSES | {"gevent"}, options={"time_limit": 1}),
    Case("deadline", End.DEADLINE, options={"deadline": 1.0}),
    Case("cancelled", End.CANCELLED),
    Case("lock-freed", End.SUCCEEDED, attempts=2, crashes=1),
    Case("killed", End.SUCCEEDED, pools=PROCESSES, elsewhere=False, attempts=2, crashes=1),
]


class Bench:
    """One worker of a pool on a store, and what its app says of its jobs."""

    def __init__(self, pool: str, folder: Path, jobs: ModuleType) -> None:
        self.pool, self.folder, self.jobs = pool, folder, jobs
        self.store, self.broker = store_for(jobs.app), broker_for(jobs.app)
        self.worker: Worker | None = None
        self.subscription: PushSubscription | None = None

    def start(self) -> None:
        """A worker, or a push service and what pushes to it; the next one, if one has ended."""
        if self.worker is not None:
            self.worker.close()
        if self.pool == "push":
            service = Service(APP, self.folder, concurrency=2)
            self.worker = service
            service.ready()
            self.broker.declare_queue(QueueSpec("celery"))
            self.subscription = PushSubscription(self.broker, "celery", service.url)
            self.subscription.__enter__()
        else:
            self.worker = Worker(APP, self.folder, pool=self.pool, concurrency=2)
            self.worker.ready()

    def close(self) -> None:
        if self.subscription is not None:
            self.subscription.__exit__()
        if self.worker is not None:
            self.worker.close()
        self.jobs.app.close()

    def log(self) -> str:
        return "" if self.worker is None else self.worker.log

    def call(self, kind: str, run: str, **options: Any) -> Any:
        kwargs = {"tenant_id": "t", "run_id": run}
        return self.jobs.job.apply_async([kind], kwargs, task_id=run, **options)

    def revoke(self, task_id: str, terminate: bool = False) -> None:
        self.jobs.app.control.revoke(task_id, terminate=terminate, reply=True, timeout=60, limit=1)

    def active(self) -> set[str]:
        [jobs] = self.jobs.app.control.inspect(timeout=PATIENCE, limit=1).active().values()
        return {job["id"] for job in jobs}

    def began(self, task_id: str) -> None:
        eventually((self.folder / f"{task_id}.began").exists, what=f"{task_id} begins")

    def record(self, run: str) -> Any:
        return self.store.get_job(JobRef("t", "ends.job", f"run:{run}"))

    def dead(self) -> set[str]:
        return {str(dead.attributes.get("task_id")) for dead in dead_letters(self.broker)}

    def check(self, case: Case, run: str, result: Any) -> str | None:
        """What is not as the table says."""
        end = case.end if self.pool in case.pools else End.SUCCEEDED
        row = end.row
        state = case.state or row.caller
        try:
            eventually(lambda: result.state == state, f"state {state}")
            if state != states.PENDING:
                eventually(lambda: result.state == state)
        except AssertionError:
            return f"{run}: the caller sees {result.state}, not {state}: {result.info!r}"
        wanted = _status(case, row.record)
        found = self.record(run)
        if found is None or (found.status, found.attempt, found.crashes) != (
            wanted,
            case.attempts if end is case.end else 1,
            case.crashes if end is case.end else 0,
        ):
            return f"{run}: the record is {found}, wanted {wanted}"
        if self.store.get_lock(LockRef("t", ("run", run))) is not None:
            return f"{run}: its lock is held"
        dead = row.message is Settlement.DEAD_LETTERED
        if dead:
            eventually(lambda: run in self.dead(), "the dead letter")
        elif run in self.dead():
            return f"{run}: it is in the dead letter"
        return None


def _status(case: Case, record: Record) -> JobStatus:
    if case.end is End.CANCELLED:
        return JobStatus.CANCELLED
    if case.end is End.REVOKED_BEFORE:
        return JobStatus.FAILED  # an attempt had left it pending
    return JobStatus(record.value)


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("firestore", marks=[pytest.mark.emulator, pytest.mark.slow]),
    ]
)
def store_url(request: pytest.FixtureRequest) -> str | None:
    if request.param == "sqlite":
        return None
    request.getfixturevalue("firestore_emulator")
    return f"firestore://ends-{uuid4().hex[:20]}"


@pytest.fixture
def bench(
    tmp_path: Path, store_url: str | None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[str], Bench]]:
    monkeypatch.setenv("ENDS_FOLDER", str(tmp_path))
    if store_url is not None:
        monkeypatch.setenv("ENDS_STORE_URL", store_url)
    made: list[Bench] = []
    with imported(APP) as jobs:

        def make(pool: str) -> Bench:
            made.append(Bench(pool, tmp_path, jobs))
            return made[-1]

        yield make
        for one in made:
            one.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "pool",
    [POOLS[0], *(pytest.param(pool, marks=pytest.mark.slow) for pool in POOLS[1:])],
)
def test_every_end_is_as_the_table_says(pool: str, bench: Callable[[str], Bench]) -> None:
    b = bench(pool)
    expired = b.call("returns", "expired", expires=0.01)
    time.sleep(0.1)  # past that, before anyone gets to see it
    b.start()
    eventually(lambda: expired.state == states.REVOKED, "the expired one is revoked")
    revoked = expired
    if pool != "push":  # it hears of no revoke
        b.revoke("revoked")
        revoked = b.call("returns", "revoked")
    cases = [case for case in CASES if pool in case.pools or case.elsewhere]
    retried = b.call("expires", "expires", expires=4)
    eventually(lambda: retried.state == states.RETRY, what="it is retried before it expires")
    results = {case.kind: b.call(case.kind, case.kind, **case.options) for case in cases[1:]}
    results["expires"] = retried
    b.began("cancelled")
    assert b.store.cancel(JobRef("t", "ends.job", "run:cancelled"), "on purpose")
    b.began("lock-freed")
    b.store.force_release(LockRef("t", ("run", "lock-freed")))
    wrong = [b.check(case, case.kind, results[case.kind]) for case in cases]
    assert [line for line in wrong if line] == [], b.log()
    eventually(lambda: revoked.state == states.REVOKED, "the revoked one is revoked")
    assert b.record("revoked") is b.record("expired") is None, End.REVOKED_BEFORE.row
    _duplicates(b)
    if pool != "push":
        _terminated(b)
        _ended(b)
    assert b.call("returns", "next").get(timeout=PATIENCE) == "returns"
    eventually(lambda: drained(b.broker), what="no message is left")
    if b.subscription is not None:
        answers = b.subscription.answers
        assert set(answers) == {204, 503}, answers


def _duplicates(b: Bench) -> None:
    """What later submissions of the same jobs get."""

    def again(kind: str, **kwargs: Any) -> Any:
        kwargs = {"tenant_id": "t", "run_id": kind, **kwargs}
        return b.jobs.job.apply_async([kind], kwargs, task_id=f"{kind}-again")

    done, replaced = again("returns"), again("replaces")
    other = again("retries", extra="other")
    assert done.get(timeout=PATIENCE) == "returns"
    assert replaced.get(timeout=PATIENCE) == "another task's"
    eventually(lambda: other.state == states.FAILURE, "a mismatch")
    eventually(lambda: "retries-again" in b.dead())
    for kind in ("returns", "replaces", "retries"):
        record = b.record(kind)
        assert (record.status, record.generation) == (JobStatus.SUCCEEDED, 1)


def _terminated(b: Bench) -> None:
    """A revoke with terminate ends the job where the pool can."""
    result = b.call("terminated", "terminated")
    b.began("terminated")
    if b.pool == "solo":  # it answers nothing while a task runs
        b.jobs.app.control.revoke("terminated", terminate=True)
    else:
        b.revoke("terminated", terminate=True)
    row = (End.REVOKED if b.pool in ENDS_JOBS else End.SUCCEEDED).row
    eventually(lambda: result.state == row.caller, row.caller)
    eventually(lambda: b.record("terminated").status is JobStatus(row.record.value), "its record")
    assert b.store.get_lock(LockRef("t", ("run", "terminated"))) is None
    assert "terminated" not in b.dead()


def _ended(b: Bench) -> None:
    """A cold shutdown loses no job."""
    assert b.worker is not None
    result = b.call("terminated", "ended")
    b.began("ended")
    if b.pool != "solo":  # Celery waits for a job if its process's report was not read by then
        eventually(lambda: "ended" in b.active(), "the worker knows that it has begun")
    b.worker.process.send_signal(signal.SIGQUIT)
    b.worker.process.wait(timeout=PATIENCE)
    record = b.record("ended")
    row = (End.ENDED if b.pool in ENDS_JOBS else End.SUCCEEDED).row
    assert record.status is JobStatus(row.record.value), b.log()
    assert record.crashes == (row.counts is Counts.CRASH)
    b.start()  # the next worker
    assert result.get(timeout=PATIENCE) == "terminated"
    assert b.record("ended").crashes == 0
    assert "ended" not in b.dead()
