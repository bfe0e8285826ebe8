"""``gwi`` where the broker is Pub/Sub: dead letters as on the embedded one, and what Pub/Sub can't do."""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import ReliableTask, broker_for, setup
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.cli.frame import Exit
from gwi_celery.testing.twin import start_twin
from gwi_celery.transport.death import Death
from tests.unit.cli.conftest import Gwi
from tests.workers import eventually


@pytest.fixture
def gwi_(tmp_path, monkeypatch) -> Iterator[Gwi]:
    with start_twin(faults=0, early_expiry=0) as twin:
        for name, value in twin.environ.items():
            monkeypatch.setenv(name, value)
        app = Celery(f"unit-{uuid4().hex}", set_as_current=False)
        project = f"p-{uuid4().hex[:20]}"
        setup(app, broker_url=f"pubsub://{project}", store_url=f"embedded://{tmp_path}/gwi")

        @app.task(shared=False, base=ReliableTask, name="shop.invoice")
        def invoice(*, tenant_id: str, run_id: str) -> None: ...

        broker_for(app).declare_queue(QueueSpec("celery"))
        yield Gwi(app)
        broker_for(app).close()
        app.close()


def test_dead_letters_and_what_can_t_be_done(gwi_):
    for run, death in (("r1", Death("failed", "KeyError", "Traceback")), ("r2", Death("deadline"))):
        gwi_.bury(death, f"text of {run}", run_id=run)
    rows = {row["run_id"]: row for row in gwi_.json("dlq", "list")}
    eventually(
        lambda: rows.update({r["run_id"]: r for r in gwi_.json("dlq", "list")}) or len(rows) == 2
    )
    found = {run: (row["reason"], row["error"], row["text"]) for run, row in rows.items()}
    assert found == {
        "r1": ("failed", "KeyError", "text of r1"),
        "r2": ("deadline", "", "text of r2"),
    }
    assert gwi_.json("dlq", "show", rows["r1"]["task_id"])["traceback"] == "Traceback"
    assert gwi_.json("dlq", "redrive", "--reason", "deadline", "--yes") == {"redriven": 1}
    assert [row["run_id"] for row in gwi_.json("dlq", "list")] == ["r1"]
    assert gwi_.json("dlq", "purge", "--error", "KeyError", "--yes") == {"purged": 1}
    assert gwi_.json("dlq", "list") == []

    [row] = gwi_.json("queues", "list")
    assert (row["name"], row["ready"], row["consumers"]) == ("celery", None, None)
    gwi_("queues", "pause", "celery", code=Exit.USAGE)
    assert "cancel_consumer" in gwi_.err
    gwi_("delayed", "list", code=Exit.USAGE)
