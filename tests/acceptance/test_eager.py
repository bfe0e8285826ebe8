"""An eager call inside a worker's job."""

from __future__ import annotations

from pathlib import Path

import pytest
from celery import Celery

from gwi_celery import setup, store_for
from gwi_celery.stores.base import JobRef
from tests.machine import PATIENCE
from tests.workers import Worker

pytestmark = pytest.mark.acceptance

NESTED = """
from celery import Celery
from gwi_celery import ReliableTask, setup

app = Celery("nested")
setup(app)

@app.task(base=ReliableTask, name="t")
def t(*, tenant_id, run_id):
    return run_id

@app.task(base=ReliableTask, name="outer")
def outer(*, tenant_id, run_id):
    return t.apply(kwargs=dict(tenant_id=tenant_id, run_id="r1")).get(disable_sync_subtasks=False)
"""


def test_its_job_is_kept_where_the_workers_is(tmp_path: Path) -> None:
    (tmp_path / "nested.py").write_text(NESTED)
    app = Celery("nested", set_as_current=False)
    setup(app, folder=str(tmp_path / ".gwi"))
    worker = Worker("nested", tmp_path, pool="solo")
    try:
        worker.ready()
        call = {"tenant_id": "acme", "run_id": "outer"}
        headers = {"gwi-tenant": "acme", "gwi-run": "outer"}
        result = app.send_task("outer", kwargs=call, headers=headers)
        assert result.get(timeout=PATIENCE) == "r1"
        assert store_for(app).get_job(JobRef("acme", "t", "run:r1")) is not None
    finally:
        worker.close()
        store_for(app).close()
        app.close()
