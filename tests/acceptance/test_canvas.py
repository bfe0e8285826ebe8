"""Celery's own features on each pool and broker: canvas, remote control, ETA, revoke, events."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from gwi_celery import broker_for, store_for
from gwi_celery.stores.base import JobRef
from tests.machine import PATIENCE
from tests.workers import Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance


POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.mark.parametrize("pool", POOLS)
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
        chord([jobs.plain_add.s(n, 1) for n in range(10)], jobs.plain_sum.s()),
        jobs.plain_add.s(100),
        group(jobs.plain_add.s(1), jobs.plain_add.s(2)),
        jobs.plain_sum.s(),
    )
    assert nested().get(timeout=PATIENCE) == 2 * 155 + 3
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


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_obeys_remote_control_and_tells_what_it_does(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool=pool, concurrency=1 if pool == "solo" else 4, args=("-E",))
    app, name = jobs.app, worker.name
    if pool == "gevent":  # Celery opens its box in a greenlet: maybe after the worker is ready
        eventually(app.control.inspect(destination=[name], timeout=1).ping)
    inspect = app.control.inspect(destination=[name], timeout=PATIENCE)
    assert inspect.ping() == {name: {"ok": "pong"}}
    assert jobs.plain_add.name in inspect.registered()[name]
    assert inspect.stats()[name]["pool"]

    seen: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: seen.append(event["type"])}
        )
        with closing(receiver.itercapture(limit=None, timeout=PATIENCE, wakeup=True)) as capture:
            next(capture)
            jobs.plain_add.delay(1, 2).get(timeout=PATIENCE)
            while "task-succeeded" not in seen:
                next(capture)
    assert {"task-received", "task-started", "task-succeeded"} <= set(seen)

    def recorded() -> dict[str, float]:
        return {e["label"]: e["at"] for e in read_audit(tmp_path) if e["event"] == "record"}

    # A task of the far future is revoked, one of the near future runs no sooner than then.
    app.control.revoke(jobs.record.apply_async(("revoked",), countdown=3600).id)
    sent = time.time()
    assert jobs.record.apply_async(("late",), countdown=1.0).get(timeout=PATIENCE) == "late"
    assert recorded()["late"] - sent >= 0.9
    soon = jobs.record.apply_async(("revoked",), countdown=1.0, task_id="soon")
    app.control.revoke("soon")
    with pytest.raises(TaskRevokedError):
        soon.get(timeout=PATIENCE)

    replies = app.control.rate_limit(
        jobs.record.name, "1/h", reply=True, destination=[name], timeout=PATIENCE
    )
    assert "ok" in replies[0][name]
    assert jobs.record.delay("within").get(timeout=PATIENCE) == "within"
    beyond = jobs.record.delay("beyond")
    # A message that is held back fills a place of the prefetch, and the solo pool has just one.
    if pool == "solo":
        worker.wait_for(rf"{beyond.id}\] received")
    else:
        assert jobs.plain_add.delay(1, 2).get(timeout=PATIENCE) == 3, "others are not held up"
    assert set(recorded()) == {"late", "within"}

    if pool != "solo":  # it answers nothing while a task runs
        busy = jobs.hold.delay(tenant_id="acme", run_id="r1", label="busy", seconds=600)
        eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "start"])
        assert [task["id"] for task in inspect.active()[name]] == [busy.id]
        assert store_for(app).cancel(JobRef("acme", "hold", "run:r1"), "enough")
        with pytest.raises(TaskRevokedError, match="enough"):
            busy.get(timeout=PATIENCE)
    app.control.shutdown(destination=[name])
    worker.process.wait(timeout=PATIENCE)
    assert worker.process.returncode == 0
