"""Celery itself on the embedded transport and result backend, with real workers."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from gwi_celery import broker_for
from tests.machine import PATIENCE
from tests.workers import Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_chain_group_chord_and_errors(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start(pool=pool, concurrency=2 if pool != "solo" else 1)
    assert chain(jobs.plain_add.s(1, 2), jobs.plain_add.s(3))().get(timeout=PATIENCE) == 6
    added = group(jobs.plain_add.s(n, n) for n in range(20))()
    assert added.get(timeout=PATIENCE) == [2 * n for n in range(20)]
    summed = chord([jobs.plain_add.s(n, 1) for n in range(20)], jobs.plain_sum.s())
    assert summed().get(timeout=PATIENCE) == sum(range(20)) + 20
    nested = chain(
        group(jobs.plain_add.s(1, 1), jobs.plain_add.s(2, 2)), jobs.plain_sum.s()
    ) | jobs.plain_add.s(10)
    assert nested().get(timeout=PATIENCE) == 16
    # reliable tasks in the same canvas
    reliable = chord(
        [jobs.add.s(n, 1, tenant_id="acme", run_id=f"p{n}") for n in range(5)], jobs.plain_sum.s()
    )
    assert reliable().get(timeout=PATIENCE) == 15
    failing = jobs.plain_fail.apply_async(link_error=jobs.on_error.s())
    with pytest.raises(RuntimeError, match="plain failure"):
        failing.get(timeout=PATIENCE)
    eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "on_error"])
    linked = jobs.add.apply_async(
        (2, 3), {"tenant_id": "acme", "run_id": "linked"}, link=jobs.record.s()
    )
    assert linked.get(timeout=PATIENCE) == 5
    eventually(lambda: [e for e in read_audit(tmp_path) if e.get("label") == 5])


def test_retry_eta_priority_and_revoke(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    # Priorities: queued before a worker is there, then drained in order.
    results = [jobs.record.apply_async((f"p{p}",), priority=p) for p in (1, 9, 5)]
    start()
    assert [r.get(timeout=PATIENCE) for r in results] == ["p1", "p9", "p5"]
    order = [e["label"] for e in read_audit(tmp_path) if e["event"] == "record"]
    assert order == ["p9", "p5", "p1"]

    # An ETA is kept by the broker, not in a worker's memory.
    sent = time.time()
    late = jobs.record.apply_async(("late",), countdown=8)
    revoked = jobs.record.apply_async(("revoked",), countdown=9)
    size = broker_for(jobs.app).size("celery")
    assert size is None or size.delayed == 2
    jobs.app.control.revoke(revoked.id)
    assert late.get(timeout=PATIENCE) == "late"
    at = next(e["at"] for e in read_audit(tmp_path) if e.get("label") == "late")
    assert at - sent >= 7.9
    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=PATIENCE)
    assert "revoked" not in [e.get("label") for e in read_audit(tmp_path)]

    assert jobs.plain_retry.delay(2).get(timeout=PATIENCE) == 2


def test_remote_control_and_events(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(args=("-E",))
    assert jobs.app.control.ping(timeout=5, destination=[worker.name]) == [
        {worker.name: {"ok": "pong"}}
    ]
    seen: list[str] = []
    with jobs.app.connection_for_read() as connection:
        receiver = jobs.app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(event["type"])}
        )
        capture = receiver.itercapture(limit=None, timeout=10, wakeup=True)
        next(capture)
        jobs.plain_add.delay(1, 2).get(timeout=PATIENCE)
        while "task-succeeded" not in seen:
            next(capture)
    assert {"task-received", "task-started", "task-succeeded"} <= set(seen)
    jobs.app.control.shutdown(destination=[worker.name])
    worker.process.wait(timeout=PATIENCE)
    assert worker.process.returncode == 0
