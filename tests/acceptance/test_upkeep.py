"""Workers and push services delete what has expired from the embedded files by themselves."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from celery import Celery

from gwi_celery import broker_for, setup, store_for
from gwi_celery.brokers.base import QueueSpec
from tests.machine import PATIENCE
from tests.service.pushing import Service
from tests.workers import Worker, eventually

pytestmark = pytest.mark.acceptance

APP = """
from celery import Celery
from gwi_celery import ReliableTask, setup

app = Celery("upkeep")
setup(app, folder="gwi", result_ttl=1.5, cleanup_interval=1)

@app.task(base=ReliableTask)
def add(x, y, *, tenant_id):
    return x + y
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "upkeep_app.py").write_text(APP)
    return tmp_path


@pytest.fixture
def producer(folder: Path) -> Iterator[Celery]:
    app = Celery(f"upkeep-{uuid4().hex}", set_as_current=False)
    setup(app, folder=str(folder / "gwi"))
    broker_for(app).declare_queue(QueueSpec("celery"))
    yield app
    store_for(app).close()
    app.backend.database.close()
    app.close()


def jobs_in(folder: Path) -> int:
    c = sqlite3.connect(folder / "store.sqlite3")
    count: int = c.execute("SELECT count(*) FROM jobs").fetchone()[0]
    c.close()
    return count


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_does_it_by_itself(folder: Path, producer: Celery, pool: str) -> None:
    worker = Worker("upkeep_app", folder, pool=pool)
    try:
        worker.ready()
        headers = {"tenant_id": "acme"}
        result = producer.send_task(
            "upkeep_app.add", (1, 2), {"tenant_id": "acme"}, headers=headers
        )
        assert result.get(timeout=PATIENCE) == 3
        eventually(lambda: jobs_in(folder / "gwi") == 0)
        worker.stop()
    finally:
        worker.close()


def test_a_push_service_does_it_by_itself(folder: Path, producer: Celery) -> None:
    service = Service("upkeep_app", folder)
    try:
        service.ready()
        job = {"id": "j", "type": "upkeep_app.add", "tenantId": "acme", "payload": {"x": 1, "y": 2}}
        assert service.push(json.dumps(job).encode()).status_code == 204
        assert producer.AsyncResult("j").get(timeout=PATIENCE) == 3
        eventually(lambda: jobs_in(folder / "gwi") == 0)
        service.stop()
    finally:
        service.close()
