"""Celery's own features on each pool: canvas, remote control, ETA, revoke, rate limits, events."""

from __future__ import annotations

import time
from contextlib import closing
from pathlib import Path

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError
from pytest_celery import CeleryTestSetup

from gwi_celery.testing.process import WorkerProcess
from tests.integration.tasks import add, fail, hold, mark, total
from tests.machine import PATIENCE
from tests.workers import eventually

pytestmark = pytest.mark.acceptance

POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture(params=POOLS, autouse=True)
def pool(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def default_worker_command(
    default_worker_container_cls: type[WorkerProcess], pool: str
) -> list[str]:
    return default_worker_container_cls.command("--pool", pool, "--concurrency", "4", "-E")


def test_a_pool_runs_chains_groups_chords_and_error_callbacks(
    celery_setup: CeleryTestSetup, tmp_path: Path
) -> None:
    assert chain(add.s(1, 2), add.s(3), add.s(4))().get(timeout=PATIENCE) == 10
    added = group(add.s(n, n) for n in range(20))()
    assert added.get(timeout=PATIENCE) == [2 * n for n in range(20)]
    nested = chain(
        chord([add.s(n, 1) for n in range(10)], total.s()),
        add.s(100),
        group(add.s(1), add.s(2)),
        total.s(),
    )
    assert nested().get(timeout=PATIENCE) == 2 * 155 + 3
    failing = chain(fail.s("on purpose"), add.s(1)).apply_async(
        link_error=mark.si(str(tmp_path), "on_error")
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        failing.parent.get(timeout=PATIENCE)
    eventually((tmp_path / "on_error").exists)


def test_a_pool_obeys_remote_control_and_tells_what_it_does(
    celery_setup: CeleryTestSetup, tmp_path: Path, pool: str
) -> None:
    app, name, folder = celery_setup.app, celery_setup.worker.hostname(), str(tmp_path)
    if pool == "gevent":  # Celery opens its box in a greenlet: maybe after the worker is ready
        eventually(app.control.inspect(destination=[name], timeout=1).ping)
    inspect = app.control.inspect(destination=[name], timeout=PATIENCE)
    assert inspect.ping() == {name: {"ok": "pong"}}
    assert add.name in inspect.registered()[name]
    assert inspect.stats()[name]["pool"]

    events: list[str] = []
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(
            connection, handlers={"*": lambda event: events.append(event["type"])}
        )
        with closing(receiver.itercapture(limit=None, timeout=30, wakeup=True)) as capture:
            next(capture)
            assert add.delay(1, 2).get(timeout=PATIENCE) == 3
            while "task-succeeded" not in events:
                next(capture)
    assert {"task-received", "task-started", "task-succeeded"} <= set(events)

    # A task of the far future is revoked, one of the near future runs no sooner than then.
    revoked = mark.apply_async((folder, "revoked"), countdown=3600)
    app.control.revoke(revoked.id)
    sent = time.time()
    assert mark.apply_async((folder, "late"), countdown=1.0).get(timeout=PATIENCE) == "late"
    assert float((tmp_path / "late").read_text()) - sent >= 0.9
    soon = mark.apply_async((folder, "revoked"), countdown=1.0, task_id="soon")
    app.control.revoke("soon")
    with pytest.raises(TaskRevokedError):
        soon.get(timeout=PATIENCE)
    assert not (tmp_path / "revoked").exists()

    replies = app.control.rate_limit(
        mark.name, "1/h", reply=True, destination=[name], timeout=PATIENCE
    )
    assert "ok" in replies[0][name]
    assert mark.delay(folder, "within").get(timeout=PATIENCE) == "within"
    mark.delay(folder, "beyond")
    assert add.delay(1, 2).get(timeout=PATIENCE) == 3, "others are not held up"
    assert not (tmp_path / "beyond").exists()

    if pool == "solo":
        return  # it answers nothing while a task runs
    busy = hold.delay(folder, "busy")
    eventually((tmp_path / "busy.began").exists)
    assert [task["id"] for task in inspect.active()[name]] == [busy.id]
    (tmp_path / "go").touch()
    assert busy.get(timeout=PATIENCE) == "busy"
