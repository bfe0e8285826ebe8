"""What an older release left behind, opened in place: its jobs go on where they were.

``RELEASE.sql`` has its embedded files, ``RELEASE.json`` what it had in Firestore and Pub/Sub. Both were
made by that release's own code: see ``make.py``.
"""

from __future__ import annotations

import json
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.stores.base import JobRef, JobStatus
from tests.apps import imported
from tests.threadworker import worker_in_thread
from tests.upgrade.make import firestore, pubsub
from tests.upgrade.older import HERE, scripts
from tests.workers import eventually


def restore_files(release: str, folder: Path) -> None:
    for name, script in scripts(release).items():
        with closing(sqlite3.connect(folder / f"{name}.sqlite3")) as file:
            file.executescript(script)
            if name == "broker":  # as old as it is, and kept for a week only
                file.execute("UPDATE messages SET expires_at = 9e9")
                file.commit()


def restore_cloud(kept: dict[str, Any], project: str) -> None:
    """The documents and messages, in another project; locks are as fresh as when they were written."""
    root = f"projects/{project}/databases/(default)/documents/"
    writes = [
        {"update": {"name": root + document["name"], "fields": document["fields"]}}
        for document in kept["documents"]
    ]
    firestore(project, "commit", {"writes": writes})
    for queue, messages in kept["messages"].items():
        pubsub(project, f"topics/gwi-{queue}:publish", {"messages": messages})


FILES = [pytest.param(path, id=path.name) for path in sorted(HERE.glob("*.sql"))]
CLOUD = [
    pytest.param(path, id=path.name, marks=[pytest.mark.emulator, pytest.mark.slow])
    for path in sorted(HERE.glob("*.json"))
]


@pytest.fixture(params=[*FILES, *CLOUD])
def payroll(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    left: Path = request.param
    monkeypatch.setenv("UPGRADE_FOLDER", str(tmp_path))
    if left.suffix == ".sql":
        restore_files(left.stem, tmp_path)
        with imported("tests.upgrade.payroll") as module:
            yield module
        return
    request.getfixturevalue("pubsub_emulator")
    request.getfixturevalue("firestore_emulator")
    project = f"p-{uuid.uuid4().hex[:20]}"
    monkeypatch.setenv("UPGRADE_PROJECT", project)
    with imported("tests.upgrade.payroll") as module:
        broker_for(module.app).declare_queue(QueueSpec("celery"))
        restore_cloud(json.loads(left.read_text()), project)
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
        eventually(lambda: status("half") is JobStatus.SUCCEEDED, timeout=60, what="half")
        eventually(lambda: status("waits") is JobStatus.SUCCEEDED, timeout=60, what="waits")
        assert broker.redrive("celery") == 1
        eventually(lambda: status("fails") is JobStatus.SUCCEEDED, timeout=60, what="redriven")

    ran = [json.loads(line) for line in (tmp_path / "ran.jsonl").read_text().splitlines()]
    assert sorted(ran) == ["fails pay", "half pay", "waits pay", "waits read"], "no step again"
    assert status("later") is None, "the one with an ETA still waits"
    size = broker.size("celery")
    if size is not None:  # Pub/Sub can't tell
        assert (size.ready, size.delayed) == (0, 1)
