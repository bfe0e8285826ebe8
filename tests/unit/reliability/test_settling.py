"""A job that waits, or was handed back, is not shown as begun; and it waits no longer than it may."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from celery import Celery, states
from celery.exceptions import Ignore

from gwi_celery import ReliableTask, broker_for, queues, store_for
from gwi_celery.errors import DeadlineExceeded, WorkerStopping
from gwi_celery.reliability import claims
from gwi_celery.reliability.call import own_lock
from gwi_celery.reliability.settling import Settling
from gwi_celery.stores.base import Claimed, ClaimRequest, JobRef, JobStatus, LockRef
from gwi_celery.worker import tracer
from tests.machine import PATIENCE

CALL = {"tenant_id": "acme", "run_id": "r1"}
JOB = JobRef("acme", "t", "run:r1")


def work_on(app: Celery, task: Any, task_id: str, retries: int = 0) -> None:
    request = {"id": task_id, "task": task.name, "delivery_info": {}, "headers": {}}
    request["retries"] = retries
    tracer.build(app, task, "w")(task_id, (), CALL, {**request, "args": (), "kwargs": CALL})


@pytest.fixture
def seen(app: Celery, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The states that were stored."""
    seen: list[str] = []
    put = app.backend.put

    def noted(key: str, value: Any, state: str, *rest: Any) -> None:
        put(key, value, state, *rest)
        seen.append(state)

    app.backend.thread_safe = True
    app._backend = app.backend
    monkeypatch.setattr(app._backend, "put", noted)
    return seen


def test_while_it_waits_for_its_lock_it_is_pending(app: Celery, seen: list[str]) -> None:
    @app.task(shared=False, base=ReliableTask, name="t", track_started=True)
    def t(*, tenant_id: str, run_id: str) -> int:
        return 3

    @app.task(shared=False, base=ReliableTask, name="other")
    def other(*, tenant_id: str, run_id: str) -> None: ...

    resolved = other.resolve_call((), CALL, {}, "t0")
    claimed = store_for(app).claim(other.claim_request(resolved, {}, "t0", 1, redelivered=False))
    assert isinstance(claimed, Claimed)
    work_on(app, t, "t1")
    assert seen == [states.STARTED, states.PENDING]
    assert app.AsyncResult("t1").state == states.PENDING
    size = broker_for(app).size("celery")
    assert size is not None
    assert size.total == 1, "a copy waits in its place"
    store_for(app).release(claimed.lease)
    work_on(app, t, "t1")
    assert app.AsyncResult("t1").get(timeout=PATIENCE) == 3


def test_a_retry_that_is_quicker_than_the_end_of_its_attempt_begins_then(
    app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> int:
        return 3

    resolved = t.resolve_call((), CALL, {}, "t1")
    claimed = store_for(app).claim(t.claim_request(resolved, {}, "t1", 1, redelivered=False))
    assert isinstance(claimed, Claimed)
    work_on(app, t, "t1", retries=1)
    assert [waiting.task_id for waiting in queues.delayed(app)] == ["t1"], (
        "it is not waited for long"
    )
    monkeypatch.setattr(claims, "_PAUSES", [0.02] * int(PATIENCE / 0.02))
    ends = threading.Timer(0.03, store_for(app).release, [claimed.lease])
    ends.start()
    work_on(app, t, "t1", retries=1)
    ends.join()
    assert app.AsyncResult("t1").get(timeout=PATIENCE) == 3
    assert len(list(queues.delayed(app))) == 1


def test_handed_back_it_is_pending(app: Celery, seen: list[str]) -> None:
    @app.task(shared=False, base=ReliableTask, name="t", track_started=True)
    def t(*, tenant_id: str, run_id: str) -> int:
        raise WorkerStopping("now")

    work_on(app, t, "t1")
    assert app.AsyncResult("t1").state == states.PENDING
    assert seen == [states.STARTED, states.PENDING]


@pytest.mark.parametrize(("behind", "most"), [("a limit of its own", 2.4), (None, 36.0)])
def test_one_that_waits_alone_asks_often_however_long(
    app: Celery, behind: str | None, most: float
) -> None:
    """What is freed is taken soon. While the store is unavailable, the pauses grow."""

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    t.push_request(id="t1", headers={"gwi_holds": 12}, kwargs=CALL, retries=0)
    before = time.time()
    try:
        with pytest.raises(Ignore):
            Settling(t).wait(ValueError(), "why", behind=behind)
    finally:
        t.pop_request()
    [waiting] = queues.delayed(app)
    assert before + most / 2 < waiting.due <= time.time() + most


@pytest.mark.parametrize(("left", "most"), [(0.3, 0.4), (-5.0, 60.0)])
def test_it_waits_no_longer_than_for_its_deadline(app: Celery, left: float, most: float) -> None:
    """Past it, as while the store is unavailable, the pauses stay as they are."""

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    t.push_request(id="t1", headers={"gwi_deadline": time.time() + left}, kwargs=CALL, retries=0)
    before = time.time()
    try:
        with pytest.raises(Ignore):
            Settling(t).wait(ValueError(), "why", at_least=20.0)
    finally:
        t.pop_request()
    [waiting] = queues.delayed(app)
    assert before + most / 3 < waiting.due <= time.time() + most


@pytest.mark.usefixtures("eager")
def test_a_job_whose_deadline_passes_while_it_waits_for_its_lock_fails(app: Celery) -> None:
    ran: list[int] = []

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None:
        ran.append(1)

    lock = LockRef("acme", ("run", "r1"))
    other = JobRef("acme", "other", "run:r1")
    holder = ClaimRequest(other, lock, "r1", "f", "other", "elsewhere:1", "n", 60, 60)
    assert isinstance(store_for(app).claim(holder), Claimed)
    with pytest.raises(DeadlineExceeded):
        t.apply_async(kwargs=CALL, deadline=-1).get()
    record = store_for(app).get_job(JOB)
    assert record is not None
    assert record.status is JobStatus.FAILED
    held = store_for(app).get_lock(lock)
    assert held is not None
    assert held.job.task == "other"
    assert store_for(app).get_lock(own_lock(JOB)) is None
    assert ran == []


@pytest.mark.usefixtures("eager")
def test_a_duplicate_whose_deadline_passes_leaves_the_job_that_runs_alone(app: Celery) -> None:
    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    app.finalize()
    fingerprint = t.resolve_call((), CALL, {}, "x").fingerprint()
    lock = LockRef("acme", ("run", "r1"))
    request = ClaimRequest(JOB, lock, "r1", fingerprint, "first", "elsewhere:1", "n", 60, 60)
    claimed = store_for(app).claim(request)
    assert isinstance(claimed, Claimed)
    with pytest.raises(DeadlineExceeded, match="held by"):
        t.apply_async(kwargs=CALL, deadline=-1).get()
    store_for(app).renew(claimed.lease)
    record = store_for(app).get_job(JOB)
    assert record is not None
    assert record.status is JobStatus.RUNNING
