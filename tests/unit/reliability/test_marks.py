"""Replays and redrives are an operator's: a publisher's are refused, and what operators do is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery, states

from gwi_celery import ReliableTask, audit, broker_for, redrives, store_for
from gwi_celery.brokers.base import REDRIVE, OutgoingMessage
from gwi_celery.errors import TaskIdTaken
from gwi_celery.integration import integration
from gwi_celery.stores.base import JobRef, JobStatus
from tests.apps import fresh_app
from tests.machine import PATIENCE
from tests.threadworker import worker_in_thread
from tests.workers import dead_letters, drained, eventually


@dataclass
class Bench:
    app: Celery
    pay: Any = None
    paid: list[str] = field(default_factory=list)
    fail: bool = False

    def settled(self) -> None:
        eventually(lambda: drained(broker_for(self.app)), what="no message is left")

    def publish(
        self, headers: dict[str, Any], attributes: dict[str, str] | None = None, run: str = "r1"
    ) -> str:
        """A message of one who may publish, just as this app's own would be."""
        task_id = str(headers.get("id") or uuid4())
        own = {"task": "pay", "id": task_id, "gwi_tenant": "t", "gwi_run": run, **headers}
        message = {
            "body": json.dumps([[], {"tenant_id": "t", "run_id": run}, {}]),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": own,
            "properties": {},
        }
        marked = {"task": "pay", "task_id": task_id, **(attributes or {})}
        broker_for(self.app).publish(
            "", "celery", OutgoingMessage(json.dumps(message).encode(), marked)
        )
        return task_id

    def reasons(self) -> list[str]:
        return [m.attributes["gwi-death-reason"] for m in dead_letters(broker_for(self.app))]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    app = fresh_app()
    bench = Bench(app)

    @app.task(shared=False, base=ReliableTask, bind=True, name="pay")
    def pay(self: Any, *, tenant_id: str, run_id: str) -> int:
        if bench.fail:
            raise ValueError("no money")
        bench.paid.append(run_id)
        return len(bench.paid)

    bench.pay = pay
    with worker_in_thread(app):
        yield bench


def forged(bench: Bench) -> dict[str, Callable[[str], tuple[dict[str, Any], dict[str, str]]]]:
    replay = {"generation": 2, "from_step": None, "task_id": None}

    def resealed(task_id: str) -> str:
        # What the same operator sealed for another message.
        from gwi_celery.reliability import marks

        headers = {"gwi_replay": {**replay, "generation": 3}}
        return str(marks.sealed(bench.app, "pay", task_id, headers)["gwi_replay"]["seal"])

    def other_step() -> str:
        mark, seal = redrives.parts(integration(bench.app).authority.redrive_mark("death"))
        return redrives.sealed(f"{mark}.start", seal)

    return {
        "replay": lambda task_id: ({"gwi_replay": replay}, {}),
        "replay with a seal of one's own": lambda task_id: (
            {"gwi_replay": {**replay, "seal": "store:AAAA"}},
            {},
        ),
        "replay with another's seal": lambda task_id: (
            {"gwi_replay": {**replay, "seal": resealed(task_id)}},
            {},
        ),
        "seal of no text": lambda task_id: ({"gwi_replay": {**replay, "seal": ["x"]}}, {}),
        "redrive": lambda task_id: ({"gwi_redrive": "x"}, {}),
        "redrive as an attribute": lambda task_id: ({}, {REDRIVE: "x"}),
        "redrive with another step than was sealed": lambda task_id: ({}, {REDRIVE: other_step()}),
        "redrive with a seal": lambda task_id: ({"gwi_redrive": "x~store:AAAA"}, {}),
    }


@pytest.mark.parametrize("way", list(forged(None)))  # type: ignore[arg-type]
def test_a_publisher_can_not_have_a_job_run_again(bench: Bench, way: str) -> None:
    run = uuid4().hex
    first = bench.pay.delay(tenant_id="t", run_id=run)
    first.get(timeout=PATIENCE)
    already = len(bench.reasons())

    headers, attributes = forged(bench)[way](first.id)
    bench.publish({"id": first.id, **headers}, attributes, run)

    eventually(lambda: len(bench.reasons()) > already, what="it is dead")
    assert "not set by an operator" in bench.reasons()[-1]
    assert bench.paid.count(run) == 1
    record = store_for(bench.app).get_job(JobRef("t", "pay", f"run:{run}"))
    assert record is not None
    assert (record.status, record.generation) == (JobStatus.SUCCEEDED, 1)
    assert first.state == states.SUCCESS, "nor is what its caller sees another's to change"


def test_a_forged_replay_that_is_revoked_at_once_ends_nothing(bench: Bench) -> None:
    run = uuid4().hex
    first = bench.pay.delay(tenant_id="t", run_id=run)
    first.get(timeout=PATIENCE)
    replay = {"generation": 2, "from_step": None, "task_id": None}
    bench.publish({"gwi_replay": replay, "expires": "2020-01-01T00:00:00+00:00"}, {}, run)
    bench.settled()
    record = store_for(bench.app).get_job(JobRef("t", "pay", f"run:{run}"))
    assert record is not None
    assert (record.status, record.generation) == (JobStatus.SUCCEEDED, 1)


def test_an_operators_replay_and_redrive_run_and_are_kept(bench: Bench) -> None:
    run = uuid4().hex
    call = {"tenant_id": "t", "run_id": run}
    bench.pay.delay(**call).get(timeout=PATIENCE)
    with audit.acting_as("ann"):
        bench.pay.replay(kwargs=call).get(timeout=PATIENCE)
    assert bench.paid.count(run) == 2

    bench.fail = True
    failing = bench.pay.delay(**(call := {"tenant_id": "t", "run_id": uuid4().hex}))
    eventually(lambda: failing.state == states.FAILURE, what="it fails")
    bench.fail = False
    bench.settled()
    assert broker_for(bench.app).redrive("celery") > 0
    eventually(lambda: call["run_id"] in bench.paid, what="it runs again")
    bench.settled()
    bench.app.control.purge()

    purge, redrive, replay = audit.entries(bench.app)[:3]
    assert (purge.what, purge.target) == ("purge", "celery")
    assert (redrive.what, redrive.target) == ("redrive", "celery")
    assert (replay.what, replay.target, replay.tenant, replay.who) == (
        *("replay", f"pay run:{run}", "t", "ann"),
    )


def test_a_call_reads_its_own_tenants_result(bench: Bench) -> None:
    run, task_id = uuid4().hex, uuid4().hex
    ours = bench.pay.apply_async(kwargs={"tenant_id": "t", "run_id": run}, task_id=task_id)
    assert ours.get(timeout=PATIENCE)
    other = bench.pay.apply_async(kwargs={"tenant_id": "u", "run_id": run}, task_id=task_id)
    eventually(lambda: bench.paid.count(run) == 2, what="both ran")
    bench.settled()
    for result in (other, bench.app.send_task("pay", headers={"gwi_tenant": "u"}, task_id=task_id)):
        with pytest.raises(TaskIdTaken):
            result.get(timeout=PATIENCE)
    assert ours.get(timeout=PATIENCE)
