"""A reliable job that its own process can't settle any more: the worker's main process does."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery import Celery

from gwi_celery import ReliableTask, broker_for, store_for
from gwi_celery.stores.base import Claimed, ClaimRequest, JobStatus, Lease
from gwi_celery.worker.request import ReliableRequest
from tests.apps import fresh_app

CALL = {"tenant_id": "acme", "run_id": "r1"}


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    yield app
    app.close()


@pytest.fixture
def request_(app: Celery) -> Iterator[ReliableRequest]:
    """Of a message that the worker holds."""
    task = app.tasks["t"]
    task.apply_async(kwargs=CALL)
    with app.connection_for_read() as connection, connection.channel() as channel:
        message = channel.basic_get("celery")
        assert message is not None
        yield ReliableRequest(
            *(message, message.ack_log_error),
            **{"on_reject": message.reject_log_error, "app": app, "task": task, "hostname": "w"},
        )


def claim(app: Celery, nonce: str) -> ClaimRequest:
    """As the pool's process does whose attempt that is."""
    task = app.tasks["t"]
    resolved = task.resolve_call((), CALL, {}, "t1")
    wanted: ClaimRequest = task.claim_request(resolved, {}, "t1", 1, redelivered=False, nonce=nonce)
    assert isinstance(store_for(app).claim(wanted), Claimed)
    return wanted


def test_a_message_is_acked_when_its_job_ends_and_not_when_it_begins(
    app: Celery, request_: ReliableRequest
) -> None:
    request_.on_accepted(1, time.monotonic())
    assert broker_for(app).size("celery").leased == 1
    request_.on_success((False, "null", 1.0))
    assert broker_for(app).size("celery").total == 0


def test_a_job_past_its_hard_time_limit_has_failed(app: Celery, request_: ReliableRequest) -> None:
    claimed = claim(app, request_._attempt)
    request_.on_timeout(soft=False, timeout=3.0)
    record = store_for(app).get_job(claimed.job)
    assert record is not None
    assert record.status is JobStatus.FAILED
    assert store_for(app).get_lock(claimed.lock) is None
    assert isinstance(app.AsyncResult(request_.id).result, TimeLimitExceeded)


def test_a_job_has_failed_also_if_its_process_releases_it_meanwhile(
    app: Celery, request_: ReliableRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is told to end leaves its job to be redelivered, and this message is acked."""
    claimed = claim(app, request_._attempt)
    store = store_for(app)
    finish = store.finish

    def finish_late(lease: Lease, *rest: Any) -> None:
        monkeypatch.undo()
        store.release(lease)
        finish(lease, *rest)

    monkeypatch.setattr(store, "finish", finish_late)
    request_.on_timeout(soft=False, timeout=3.0)
    record = store.get_job(claimed.job)
    assert record is not None
    assert record.status is JobStatus.FAILED


@pytest.mark.parametrize("ours", [True, False])
def test_a_lost_process_frees_the_lock_that_its_attempt_held(
    ours: bool, app: Celery, request_: ReliableRequest
) -> None:
    claimed = claim(app, request_._attempt if ours else "another")
    try:
        raise WorkerLostError("it was killed")
    except WorkerLostError:
        request_.on_failure(ExceptionInfo(sys.exc_info()))
    assert (store_for(app).get_lock(claimed.lock) is None) is ours
    assert broker_for(app).size("celery").total == 1, "it is redelivered"
