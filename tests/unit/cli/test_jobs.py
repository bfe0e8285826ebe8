"""``gwi jobs`` and ``gwi locks``; and the page in the night: seven stuck jobs of seven causes."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from gwi_celery import ReliableTask, broker_for, jobs, queues
from gwi_celery.cli.frame import Exit
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.unit.cli.conftest import vanished
from tests.workers import eventually


@pytest.fixture
def app(app):
    """With a task that does what its run's id says."""
    app.conf.worker_prefetch_multiplier = 1
    release = threading.Event()

    @app.task(shared=False, base=ReliableTask, bind=True, name="shop.audit", max_retries=3)
    def audit(self: Any, *, tenant_id: str, run_id: str, how: str = "") -> str:
        self.step("list", lambda: 1)
        if how == "holds":
            assert release.wait(PATIENCE)
        if how == "retries":
            raise self.retry(exc=ValueError("try later"), countdown=1000)
        if how == "fails":
            raise KeyError("sku")
        return run_id

    yield app
    release.set()


def call(gwi_, run: str, how: str = "", **options: Any) -> str:
    task = gwi_.app.tasks["shop.audit"]
    kwargs = {"tenant_id": "acme", "run_id": run, "how": how}
    return str(task.apply_async(kwargs=kwargs, **options).id)


def working(gwi_) -> Any:
    return worker_in_thread(gwi_.app, pool="threads", concurrency=4)


def test_seven_stuck_jobs_of_seven_causes(gwi_):
    def explained(id: str) -> str:
        return str(gwi_.json("jobs", "explain", id)["explanation"])

    def becomes(id: str, status: str) -> None:
        def there() -> bool:
            found = jobs.get(id, app=gwi_.app)
            return found is not None and found.record.status.value == status

        eventually(there, what=f"{id} is {status}")

    with working(gwi_):
        holder = call(gwi_, "r1", "holds")
        becomes(holder, "running")
        invoice = gwi_.app.tasks["shop.invoice"]
        waits = invoice.apply_async(kwargs={"tenant_id": "acme", "run_id": "r1"}).id
        retries, fails = call(gwi_, "r2", "retries"), call(gwi_, "r3", "fails")
        unknown = gwi_.app.send_task("shop.gone", kwargs={"tenant_id": "acme"}).id
        becomes(retries, "pending")
        becomes(fails, "failed")
        eventually(lambda: len(list(queues.dead_letters(gwi_.app))) == 2, what="two are given up")
        becomes(waits, "waiting")
        dies = vanished(gwi_, "r4")
        later = call(gwi_, "r5", countdown=1000)
        paused = call(gwi_, "r6", queue="slow")
        gwi_("queues", "pause", "slow")

        assert "runs on" in explained(holder)
        assert "waits for the lock run:r1 of acme, held by" in explained(waits)
        sentence = explained(retries)
        assert "ValueError" in sentence
        assert "tried again in" in sentence
        sentence = explained(fails)
        assert "KeyError" in sentence
        assert "dead letter of celery (failed)" in sentence
        assert "dead letter of celery (unregistered)" in explained(unknown)
        dead = gwi_.json("dlq", "show", fails)
        assert (dead["reason"], dead["error"], dead["attempts"]) == ("failed", "KeyError", 1)
        assert 'raise KeyError("sku")' in dead["traceback"]
        assert "dead-host:7 fell silent" in explained(dies)
        assert "is delayed in queue celery: it is due in" in explained(later)
        assert "queue slow, which is paused: `gwi queues resume slow`" in explained(paused)
        assert "no worker has seen it" in explained("nobody")

        rows = {row["task_id"]: row for row in gwi_.json("jobs", "list", "--tenant", "acme")}
        assert rows[fails]["error"].startswith("KeyError")
        assert [row["task_id"] for row in gwi_.json("jobs", "list", "--error", "KeyError")] == [
            fails
        ]
        shown = gwi_.json("jobs", "show", fails)
        assert [a["how"] for a in shown["attempts"]] == ["failed"]
        assert [s["name"] for s in shown["steps"]] == ["list"]
        assert len(shown["dead_letters"]) == 1
        assert "1.1 failed on" in gwi_("jobs", "show", fails)

        held = {row["scope"] for row in gwi_.json("locks", "list")}
        assert "run/r1" in held
        workers = gwi_.json("workers")
        assert sum(row["runs"] for row in workers) >= 1

        gwi_("jobs", "cancel", retries, code=Exit.REFUSED)
        assert gwi_.json("jobs", "cancel", retries, "--yes") == {"cancelled": 1}
        assert "was cancelled" in explained(retries)
        assert gwi_.json("jobs", "replay", fails, "--resume", "--yes")["replayed"] == 1
        assert gwi_.json("locks", "release", "acme", "run/r1", "--yes") == {"released": True}
        gwi_("locks", "release", "acme", "run/r1", "--yes", code=Exit.NOTHING)
        gwi_("jobs", "cancel", "nobody", "--yes", code=Exit.NOTHING)
        gwi_("jobs", "cancel", "--yes", code=Exit.USAGE)
        gwi_("jobs", "show", "nobody", code=Exit.NOTHING)
        forked = gwi_.json("jobs", "fork", fails, "--run", "r7", "--set", 'how=""')["task_id"]
        becomes(forked, "succeeded")
        gwi_("jobs", "fork", fails, "--run", "r8", "--set", "how", code=Exit.USAGE)


def test_a_table_of_jobs(gwi_, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    id = vanished(gwi_, "r1")
    assert gwi_("jobs", "list", "--status", "running").splitlines() == [
        "STATUS   TASK        TENANT  RUN  AGE  ID   ",
        f"running  shop.audit  acme    r1    0s  {id}",
    ]


def test_config_doctor_and_cleanup(gwi_, monkeypatch):
    monkeypatch.setenv("GWI_SERVICE_TOKEN", "")
    rows = {row["name"]: row for row in gwi_.json("config")}
    assert rows["folder"]["source"] == "setup()"
    assert rows["broker"]["value"].startswith("embedded://")
    assert {row["name"] for row in gwi_.json("config", "--all")} > set(rows)
    assert gwi_.json("cleanup") == {"deleted": 0}
    problems = {r["what"]: r for r in _doctor(gwi_, Exit.PROBLEMS) if not r["holds"]}
    assert problems["queues"]["change"] == "celery -A APP gwi init"
    gwi_("init")
    assert all(row["holds"] for row in _doctor(gwi_, Exit.OK))
    gwi_("queues", "pause", "celery")
    problems = {r["what"]: r for r in _doctor(gwi_, Exit.PROBLEMS) if not r["holds"]}
    assert problems["queues"]["change"] == "celery -A APP gwi queues resume celery"
    assert broker_for(gwi_.app).state("celery").paused


def _doctor(gwi_, code: Exit) -> Any:
    import json

    return json.loads(gwi_("doctor", "--json", code=code))
