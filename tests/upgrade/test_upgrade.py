"""The embedded files of an older release, opened in place: its jobs go on where they were.

``RELEASE.sql`` was made by that release's own code: see ``make.py``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.stores.base import JobRef, JobStatus
from tests.apps import imported
from tests.threadworker import worker_in_thread
from tests.upgrade.older import HERE, scripts
from tests.workers import eventually

RELEASES = sorted(path.stem for path in HERE.glob("*.sql"))


def restore(release: str, folder: Path) -> None:
    for name, script in scripts(release).items():
        with closing(sqlite3.connect(folder / f"{name}.sqlite3")) as file:
            file.executescript(script)
            if name == "broker":  # as old as it is, and kept for a week only
                file.execute("UPDATE messages SET expires_at = 9e9")
                file.commit()


@pytest.fixture(params=RELEASES)
def payroll(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    restore(request.param, tmp_path)
    monkeypatch.setenv("UPGRADE_FOLDER", str(tmp_path))
    with imported("tests.upgrade.payroll") as module:
        yield module


def test_jobs_of_an_older_release_go_on(payroll: ModuleType, tmp_path: Path) -> None:
    app, pay = payroll.app, payroll.pay
    store, broker = store_for(app), broker_for(app)
    call = {"tenant_id": "acme", "amount": 1}

    def status(run: str) -> JobStatus | None:
        record = store.get_job(JobRef("acme", "payroll.pay", f"run:{run}"))
        return record and record.status

    assert status("done") is JobStatus.SUCCEEDED
    assert status("fails") is JobStatus.FAILED
    assert status("half") is JobStatus.RUNNING, "its worker was killed"
    assert [m.attributes["task"] for m in broker.peek("celery.dead")] == ["payroll.pay"]

    with worker_in_thread(app):
        done = pay.delay(run_id="done", **call).get(timeout=60)
        assert done == {"run": "done", "paid": 3, "note": {"half": True}}
        eventually(lambda: status("half") is JobStatus.SUCCEEDED, what="half")
        eventually(lambda: status("waits") is JobStatus.SUCCEEDED, what="waits")
        assert broker.redrive("celery") == 1
        eventually(lambda: status("fails") is JobStatus.SUCCEEDED, what="fails, redriven")

    ran = [json.loads(line) for line in (tmp_path / "ran.jsonl").read_text().splitlines()]
    assert sorted(ran) == ["fails pay", "half pay", "waits pay", "waits read"], "no step again"
    size = broker.size("celery")
    assert size is not None
    assert (size.ready, size.delayed) == (0, 1), "the one with an ETA still waits"
