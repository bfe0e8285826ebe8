"""ReliableTask on Firestore, eagerly: that it claims as it should, and goes on through outages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import ReliableTask, setup
from gwi_celery.backends.results import came_before
from gwi_celery.firestore.client import ServerError
from gwi_celery.headers import HOLDS_HEADER, REPLAY_HEADER
from gwi_celery.integration import integration
from tests.firestore_wire import COMMIT, LOST_REQUEST, QUERY, READ, Code, Wire

pytestmark = [pytest.mark.emulator, pytest.mark.usefixtures("firestore_emulator")]

CALL = {"tenant_id": "acme", "run_id": "r1"}


@pytest.fixture
def app(wire: Wire) -> Iterator[Celery]:
    app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
    app.conf.result_backend = "cache+memory://"
    setup(app, broker_url=f"embedded://:memory:/{uuid4().hex}", store_url="firestore://unused")
    integration(app)._store = wire.store()
    app.conf.task_always_eager = True
    yield app
    integration(app).store.close()
    app.close()


def test_a_retry_reads_first_and_loads_its_steps(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t", max_retries=2)
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        one = self.step("one", lambda: 1)
        if self.request.retries == 0:
            raise self.retry(countdown=0)
        return one

    assert t.delay(**CALL).get() == 1
    claim, step, release, finish = COMMIT, COMMIT, COMMIT, COMMIT
    assert wire.calls == [claim, step, release, READ, claim, QUERY, finish]


@pytest.mark.parametrize(
    ("delivery", "headers", "first"),
    [
        ({}, {}, COMMIT),
        ({"redelivered": False}, {}, COMMIT),
        ({"redelivered": True}, {}, READ),
        ({}, {HOLDS_HEADER: 2}, READ),
        ({}, {REPLAY_HEADER: {"generation": 2, "from_step": None}}, READ),
    ],
)
def test_what_came_before_is_read_first(
    app: Celery, wire: Wire, delivery: dict[str, Any], headers: dict[str, Any], first: str
) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None: ...

    class Request:
        delivery_info = delivery
        retries = 0

    resolved = t.resolve_call([], CALL, headers, "id")
    request = t.claim_request(resolved, headers, "id", 1, redelivered=came_before(Request))
    integration(app).store.claim(request)
    assert wire.calls[0] == first


def test_a_job_goes_on_through_an_outage_that_its_lease_outlasts(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> Any:
        wire.faults = iter([LOST_REQUEST] * 15)
        return self.step("one", lambda: 1)

    assert t.delay(**CALL).get() == 1
    assert wire.calls.count(COMMIT) > 3


def test_a_store_that_refuses_says_what_to_do(app: Celery, wire: Wire) -> None:
    @app.task(shared=False, base=ReliableTask, bind=True, name="t")
    def t(self: Any, *, tenant_id: str, run_id: str) -> None: ...

    def denied() -> Iterator[str | None]:
        raise ServerError(Code.PERMISSION_DENIED, "Missing or insufficient permissions.")
        yield

    wire.faults = denied()
    with pytest.raises(Exception, match=r"roles/datastore\.user"):
        t.delay(**CALL).get()
