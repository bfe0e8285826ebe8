"""An embedded app in a folder of its own, and a way to call ``celery gwi`` on it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
from celery import Celery
from click.testing import CliRunner

from gwi_celery import ReliableTask, broker_for, setup, store_for
from gwi_celery.cli import gwi
from gwi_celery.cli.frame import SHAPES, Exit
from gwi_celery.stores.base import Claimed, ClaimRequest, JobRef, LockRef, Origin
from gwi_celery.transport.death import Death, deceased

FAILED = Death(
    "failed", "shop.errors.NoMoney", "Traceback (most recent call last):\n  ...\nNoMoney: no"
)


class Gwi:
    """``celery gwi`` on an app."""

    def __init__(self, app: Celery) -> None:
        self.app = app
        self.err = ""

    def __call__(self, *arguments: str, code: Exit = Exit.OK, input: str | None = None) -> str:
        done = CliRunner().invoke(gwi, arguments, obj=SimpleNamespace(app=self.app), input=input)
        self.err = done.stderr
        assert done.exit_code == code, done.output
        return done.stdout

    def json(self, *arguments: str) -> Any:
        """What ``--json`` prints, once it is seen to be as its schema says."""
        found = json.loads(self(*arguments, "--json"))
        [shape] = [SHAPES[name] for n in (2, 1) if (name := " ".join(arguments[:n])) in SHAPES][:1]
        jsonschema_rs.validate(shape.schema(), found)
        return found

    def bury(self, death: Death, text: str, queue: str = "celery", **call: Any) -> None:
        """Have a call of the app's task die as if its worker had given it up."""
        task = self.app.tasks["shop.invoice"]
        sent = task.apply_async(kwargs={"tenant_id": "acme", "run_id": "r1", **call}, queue=queue)
        broker = broker_for(self.app)
        [delivery] = broker.receiver().poll(queue, 1)
        assert delivery.attributes["task_id"] == sent.id
        broker.dead_letter(deceased(delivery, death), text)


@pytest.fixture
def app(tmp_path: Path) -> Iterator[Celery]:
    app = Celery(f"unit-{tmp_path.name}", set_as_current=False)
    setup(app, folder=str(tmp_path / "gwi"))

    @app.task(base=ReliableTask, bind=True, name="shop.invoice", shared=False)
    def invoice(self: Any, *, tenant_id: str, run_id: str, amount: int = 1) -> int:
        return amount

    yield app
    app.close()


@pytest.fixture
def gwi_(app: Celery) -> Gwi:
    return Gwi(app)


@pytest.fixture
def three(gwi_: Gwi) -> Gwi:
    """Two jobs of acme and one of bolt, given up for three reasons."""
    gwi_.bury(FAILED, "NoMoney: no", run_id="r1")
    gwi_.bury(Death("deadline", "DeadlineExceeded"), "DeadlineExceeded: late", run_id="r2")
    gwi_.bury(Death("deliveries"), "delivered 20 times without an ack", tenant_id="bolt")
    return gwi_


def exported_and_imported(three: Gwi, tmp_path: Path) -> None:
    """Its three dead letters survive the way to a file and back, any number of times."""
    file = tmp_path / "dead.jsonl"
    assert three.json("dlq", "export", str(file)) == {"exported": 3}
    assert three.json("dlq", "import", str(file)) == {"imported": 0}, "all are there"
    before = {row["task_id"]: row for row in three.json("dlq", "list")}
    three("dlq", "purge", "--all", "--yes")
    assert three.json("dlq", "import", str(file)) == {"imported": 3}
    assert three.json("dlq", "import", str(file)) == {"imported": 0}
    after = {row["task_id"]: row for row in three.json("dlq", "list")}
    for task_id, row in after.items():
        for name in ("reason", "error", "text", "tenant", "attempts", "worker"):
            assert row[name] == before[task_id][name], name
        assert row["died_at"] == pytest.approx(before[task_id]["died_at"], abs=1e-5)
    assert three.json("dlq", "redrive", "--all", "--yes") == {"redriven": 3}


def vanished(gwi_: Gwi, run: str) -> str:
    """A job whose worker fell silent."""
    task_id = f"id-{run}"
    request = ClaimRequest(
        job=JobRef("acme", "shop.audit", f"run:{run}"),
        lock=LockRef("acme", ("run", run)),
        run_id=run,
        fingerprint="f",
        submission=task_id,
        owner=f"dead-host:7 {task_id}",
        nonce=run,
        lease_ttl=0.01,
        result_ttl=1000.0,
        origin=Origin(task_id=task_id, queue="celery"),
    )
    assert isinstance(store_for(gwi_.app).claim(request), Claimed)
    time.sleep(0.05)
    return task_id
