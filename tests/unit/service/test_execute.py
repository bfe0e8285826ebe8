"""A pushed message has all of Celery's meaning: in process, with a pool of threads."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, signals
from celery.worker import state

from gwi_celery import ReliableTask, broker_for, store_for
from gwi_celery.brokers.base import Broker, Delivery, QueueSpec
from gwi_celery.errors import BrokerUnavailable
from gwi_celery.service.execute import Executor
from gwi_celery.stores.base import JobStatus
from gwi_celery.transport.settlement import Settlement
from tests.apps import fresh_app
from tests.machine import PATIENCE

DONE: dict[str, Any] = {}


@pytest.fixture(scope="module")
def app() -> Iterator[Celery]:
    app = fresh_app()
    DONE.update(entered=threading.Event(), go_on=threading.Event())

    @app.task(shared=False, name="add")
    def add(x: int, y: int) -> int:
        return x + y

    @app.task(shared=False, name="early", acks_late=False)
    def early() -> None:
        DONE["entered"].set()
        assert DONE["go_on"].wait(PATIENCE)

    @app.task(shared=False, name="limited", rate_limit="1/h")
    def limited() -> None: ...

    @app.task(shared=False, base=ReliableTask, bind=True, name="reliable")
    def reliable(self: Any, *, tenant_id: str, run_id: str) -> list[int]:
        return [self.step(f"s{n}", time.monotonic_ns) for n in range(3)]

    yield app
    app.close()


@pytest.fixture(scope="module")
def started(app: Celery) -> Iterator[Executor]:
    executor = Executor(app, pool="threads", size=2)
    executor.start()
    yield executor
    executor.stop(10)


@pytest.fixture
def executor(started: Executor) -> Executor:
    """All tests share it; what one of them used of a rate limit is there for the next."""
    assert started._consumer is not None
    started._consumer.reset_rate_limits()
    return started


@pytest.fixture
def broker(app: Celery) -> Broker:
    broker = broker_for(app)
    broker.declare_queue(QueueSpec("celery"))
    broker.purge("celery")
    return broker


def delivery(task: str, *args: Any, id: str | None = None, **headers: Any) -> Delivery:
    message = {
        "body": json.dumps([args, headers.pop("kwargs", {}), {}]),
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"lang": "py", "task": task, "id": id or uuid4().hex, **headers},
        "properties": {},
    }
    return Delivery("celery", "a", "m", json.dumps(message).encode(), {}, 1, 0.0, 0, 0.0)


def run(executor: Executor, what: Delivery, hand_back_in: float = 60.0) -> Settlement:
    return executor.submit(what, hand_back_at=time.monotonic() + hand_back_in).result(
        timeout=PATIENCE
    )


def test_all_signals_are_sent(executor: Executor) -> None:
    heard: list[str] = []
    connected = []
    for name in ("task_received", "task_prerun", "task_success", "task_postrun"):
        signal = getattr(signals, name)

        def receiver(name: str = name, **kwargs: Any) -> None:
            heard.append(name)

        signal.connect(receiver, weak=False)
        connected.append((signal, receiver))
    try:
        assert run(executor, delivery("add", 1, 2)) is Settlement.ACKED
    finally:
        for signal, receiver in connected:
            signal.disconnect(receiver)
    assert heard == ["task_received", "task_prerun", "task_success", "task_postrun"]


def test_a_revoked_task_does_not_run(executor: Executor, app: Celery) -> None:
    state.revoked.add("revoked-1")
    assert run(executor, delivery("add", 1, 2, id="revoked-1")) is Settlement.ACKED
    assert app.AsyncResult("revoked-1").state == "REVOKED"


def test_an_early_ack_is_answered_when_the_task_has_ended(executor: Executor) -> None:
    """Cloud Run takes the processor away after the answer."""
    future = executor.submit(delivery("early"), hand_back_at=time.monotonic() + 60)
    assert DONE["entered"].wait(PATIENCE)
    time.sleep(0.05)
    assert not future.done()
    DONE["go_on"].set()
    assert future.result(timeout=PATIENCE) is Settlement.ACKED


def test_what_is_over_its_rate_or_before_its_time_is_given_back_with_a_delay(
    executor: Executor, broker: Broker
) -> None:
    assert run(executor, delivery("limited")) is Settlement.ACKED
    assert run(executor, delivery("limited")) is Settlement.ACKED
    eta = (datetime.now(timezone.utc) + timedelta(hours=1)).isoformat()
    assert run(executor, delivery("add", 1, 2, eta=eta)) is Settlement.ACKED
    size = broker.size("celery")
    assert size is not None
    assert (size.delayed, size.ready) == (2, 0), "the first of them ran"


def test_an_eta_that_is_over_runs_at_once(executor: Executor, app: Celery) -> None:
    eta = (datetime.now(timezone.utc) - timedelta(hours=1)).isoformat()
    assert run(executor, delivery("add", 1, 2, id="late-1", eta=eta)) is Settlement.ACKED
    assert app.AsyncResult("late-1").result == 3


def test_a_job_is_handed_back_when_its_push_ends(
    executor: Executor, app: Celery, broker: Broker
) -> None:
    what = delivery("reliable", kwargs={"tenant_id": "acme", "run_id": "long"})
    assert run(executor, what, hand_back_in=-1) is Settlement.ACKED
    size = broker.size("celery")
    assert size is not None
    assert size.ready == 1
    copy = json.loads(broker.peek("celery")[0].data)
    assert (copy["headers"]["task"], copy["headers"]["retries"]) == ("reliable", 0)
    assert "gwi_push_until" not in broker.peek("celery")[0].data.decode()
    record = store_for(app).list_jobs("acme").jobs[0]
    assert record.status is JobStatus.PENDING
    assert store_for(app).list_locks("acme") == []


def test_nobody_but_the_endpoint_says_when_a_push_ends(
    executor: Executor, app: Celery, broker: Broker
) -> None:
    """A publisher's property of that name would have its jobs handed back for ever."""
    what = delivery("reliable", kwargs={"tenant_id": "acme", "run_id": "forged"})
    forged = json.loads(what.data)
    forged["properties"]["gwi_push_until"] = -1
    message = Delivery("celery", "a", "m", json.dumps(forged).encode(), {}, 1, 0.0, 0, 0.0)
    assert run(executor, message) is Settlement.ACKED
    by_run = {j.run_id: j.status for j in store_for(app).list_jobs("acme").jobs}
    assert by_run["forged"] is JobStatus.SUCCEEDED


def test_what_can_not_be_kept_is_refused(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker is unavailable: a message that should be dead, or wait, has to be redelivered."""

    class Away:
        def publish(self, *args: Any) -> None:
            raise BrokerUnavailable("away")

        bury = publish

    assert run(executor, delivery("limited")) is Settlement.ACKED, "the next is over its rate"
    monkeypatch.setattr(executor, "_broker", Away())
    assert run(executor, delivery("nobody.knows")) is Settlement.NACKED
    assert run(executor, delivery("limited")) is Settlement.NACKED
    not_json = Delivery("celery", "a", "m", b"no json", {}, 1, 0.0, 0, 0.0)
    assert run(executor, not_json) is Settlement.NACKED
    assert executor.alive()


@pytest.mark.parametrize("settlement", list(Settlement))
def test_a_push_is_acked_exactly_when_a_pulled_message_is_gone(settlement: Settlement) -> None:
    gone = settlement is not Settlement.NACKED
    assert (settlement.push_status == 204) is gone
    assert Settlement.of_reject(requeue=True) is Settlement.NACKED
    assert Settlement.of_reject(requeue=False) is Settlement.DEAD_LETTERED
