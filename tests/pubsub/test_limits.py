"""A tenant's thousand jobs, over its limit, and another's ten, on Pub/Sub."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import Limit, Reliable, ReliableTask, publish_batch, setup
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread

pytestmark = [pytest.mark.emulator, pytest.mark.slow]


def test_a_thousand_jobs_of_one_tenant_do_not_hold_up_anothers_ten(url: str) -> None:
    app = Celery(f"limits-{uuid4().hex}", set_as_current=False)
    setup(app, broker_url=url, store_url=f"embedded://:memory:/{uuid4().hex}")
    go_on, done = threading.Event(), []

    @app.task(
        shared=False,
        base=ReliableTask,
        name="t",
        reliable=Reliable(limits=[Limit("{tenant_id}", max_running=3)]),
    )
    def t(*, tenant_id: str, run_id: str) -> str:
        if tenant_id == "many":
            go_on.wait(PATIENCE * 2)
        done.append(tenant_id)
        return run_id

    with publish_batch():
        for n in range(1000):
            t.delay(tenant_id="many", run_id=f"r{n}")
    few = [t.delay(tenant_id="few", run_id=f"r{n}") for n in range(10)]
    with worker_in_thread(app, pool="threads", concurrency=8):
        try:
            assert [result.get(timeout=PATIENCE) for result in few] == [f"r{n}" for n in range(10)]
            assert done == ["few"] * 10, "three of the thousand have run all the while"
        finally:
            go_on.set()
