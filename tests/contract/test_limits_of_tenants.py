"""A limit of each tenant: they take turns. Its worker must be the only one in its process."""

from __future__ import annotations

import threading
from uuid import uuid4

import pytest

from gwi_celery import Limit, Reliable, ReliableTask, broker_for, publish_batch
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread


@pytest.mark.parametrize(
    ("broker", "many"),
    [
        ("embedded", 150),
        pytest.param("embedded", 1000, marks=pytest.mark.slow),
        pytest.param("pubsub", 1000, marks=[pytest.mark.emulator, pytest.mark.slow]),
    ],
)
def test_many_jobs_of_one_tenant_do_not_hold_up_anothers_ten(
    broker: str, many: int, request: pytest.FixtureRequest
) -> None:
    settings = {}
    if broker == "pubsub":
        endpoint = request.getfixturevalue("pubsub_emulator").endpoint
        settings["broker_url"] = f"pubsub://{endpoint}/p-{uuid4().hex[:20]}"
    app = fresh_app(**settings)
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
        for n in range(many):
            t.delay(tenant_id="many", run_id=f"r{n}")
    few = [t.delay(tenant_id="few", run_id=f"r{n}") for n in range(10)]
    with worker_in_thread(app, pool="threads", concurrency=8):
        try:
            assert [result.get(timeout=PATIENCE) for result in few] == [f"r{n}" for n in range(10)]
            assert done == ["few"] * 10, "three of the many have run all the while"
            broker_for(app).purge("celery")
        finally:
            go_on.set()
    app.close()
