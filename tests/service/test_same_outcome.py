"""Pushed or pulled, a message comes to the same: a table of cases, run both ways by real processes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from celery import Celery
from celery.result import AsyncResult
from kombu import Producer

from gwi_celery import broker_for, store_for
from gwi_celery.brokers.base import DEATH_REASON, OutgoingMessage
from gwi_celery.stores.base import JobRef
from tests.service.pushing import APP, PushSubscription, Service, jobs_in, push_to
from tests.workers import Worker, eventually, read_audit

pytestmark = [pytest.mark.acceptance, pytest.mark.xdist_group("same-outcome")]


PAST = datetime(2020, 1, 1, tzinfo=timezone.utc)


def call(name: str, **more: Any) -> dict[str, Any]:
    return {"tenant_id": "acme", "run_id": name, **more}


def raw(jobs: ModuleType, data: bytes) -> None:
    broker_for(jobs.app).publish("", "celery", OutgoingMessage(data))


def plain(jobs: ModuleType, **job: Any) -> AsyncResult:
    raw(jobs, json.dumps(job).encode())
    return jobs.app.AsyncResult(job["id"])


def produce(jobs: ModuleType, body: Any, **options: Any) -> None:
    with jobs.app.connection_for_write() as connection:
        Producer(connection).publish(body, routing_key="celery", **options)


def celery_message(body: str, **headers: Any) -> bytes:
    kind = {"content-type": "application/json", "content-encoding": "utf-8"}
    return json.dumps({"body": body, "headers": headers, "properties": {}, **kind}).encode()


def cancelled(jobs: ModuleType) -> AsyncResult:
    job = JobRef("acme", "three_steps", "run:cancelled")
    store_for(jobs.app).cancel(job, "not wanted", in_advance=True)
    return jobs.three_steps.delay(**call("cancelled"))


def expired(jobs: ModuleType) -> AsyncResult:
    """It ran out on its way: the broker itself had no part in it."""
    headers = {"task": "plain_add", "id": "expired", "lang": "py", "expires": PAST.isoformat()}
    produce(jobs, [[1, 2], {}, {}], headers={**headers, "retries": 0})
    return jobs.app.AsyncResult("expired")


#: What each case does, and the states its results must come to (none: it has no result). What is to be
#: submitted only when the result before it is there, is a function.
CASES: dict[str, tuple[Callable[[ModuleType], Any], list[str]]] = {
    "success": (lambda j: j.three_steps.delay(**call("success")), ["SUCCESS"]),
    "duplicate": (
        lambda j: [
            j.three_steps.delay(**call("dup")),
            lambda: j.three_steps.delay(**call("dup")),
        ],
        ["SUCCESS", "SUCCESS"],
    ),
    "mismatch": (
        lambda j: [
            j.three_steps.delay(**call("mismatch")),
            lambda: j.three_steps.delay(**call("mismatch", factor=2)),
        ],
        ["SUCCESS", "FAILURE"],
    ),
    "fails": (lambda j: j.fails.delay(**call("fails")), ["FAILURE"]),
    "retries": (lambda j: j.flaky.delay(**call("flaky", fail_times=2)), ["SUCCESS"]),
    "autoretries": (lambda j: j.auto.delay(**call("auto", fail_times=1)), ["SUCCESS"]),
    "retries used up": (lambda j: j.flaky.delay(**call("used-up", fail_times=9)), ["FAILURE"]),
    "contended": (
        lambda j: [
            j.hold.delay(**call("contended", label="a", seconds=1.0)),
            j.three_steps.delay(**call("contended")),
        ],
        ["SUCCESS", "SUCCESS"],
    ),
    "hard time limit": (lambda j: j.slow.delay(**call("slow")), ["FAILURE"]),
    "soft time limit": (lambda j: j.soft.delay(**call("soft")), ["SUCCESS"]),
    "past its deadline": (
        lambda j: j.three_steps.apply_async(
            kwargs=call("late"), headers={"gwi_deadline": PAST.timestamp()}
        ),
        ["FAILURE"],
    ),
    "cancelled": (cancelled, ["REVOKED"]),
    "expired": (expired, ["REVOKED"]),
    "eta": (lambda j: j.record.apply_async(args=["eta"], countdown=1.5), ["SUCCESS"]),
    "rejects": (lambda j: j.rejects.delay(**call("rejects")), ["FAILURE"]),
    "redelivered": (lambda j: j.redelivered.delay(**call("again")), ["SUCCESS"]),
    "ignores": (lambda j: j.ignores.delay(**call("ignores")), []),
    "worker lost": (lambda j: j.poison.delay(**call("poison")), ["FAILURE"]),
    "plain task with a callback": (
        lambda j: j.plain_add.apply_async(args=[1, 2], link=j.record.si("linked")),
        ["SUCCESS"],
    ),
    "plain task that fails, with an errback": (
        lambda j: j.plain_fail.apply_async(link_error=j.on_error.s()),
        ["FAILURE"],
    ),
    "chord": (
        lambda j: (j.add.s(1, 2, tenant_id="acme") | j.record.s()).apply_async(),
        ["SUCCESS"],
    ),
    "plain job": (
        lambda j: plain(
            j, id="job-1", type="counted", tenantId="acme", runId="pj", payload={"to": 2}
        ),
        ["SUCCESS"],
    ),
    "plain job that may not be retried": (
        lambda j: plain(
            j,
            id="job-2",
            type="flaky",
            tenantId="acme",
            runId="pj2",
            payload={"fail_times": 2},
            metadata={"maxRetries": 1},
        ),
        ["FAILURE"],
    ),
    "plain job of an unknown task": (
        lambda j: plain(j, id="job-3", type="nobody.knows", tenantId="acme", runId="x"),
        [],
    ),
    "malformed plain job": (lambda j: raw(j, b'{"id": 1, "type": "x"}'), []),
    "unknown task": (lambda j: j.app.send_task("nobody.knows", kwargs=call("y")), ["FAILURE"]),
    "no tenant": (
        # As one sends it who doesn't know the task: ours would be refused.
        lambda j: Celery.send_task(j.app, "three_steps", kwargs={"run_id": "r"}),
        ["FAILURE"],
    ),
    "not JSON": (lambda j: raw(j, b"\xff\x00 not json"), []),
    "not a message": (lambda j: raw(j, b'{"some": "json"}'), []),
    "no task": (lambda j: produce(j, {"no": "task"}), []),
    "broken body": (
        lambda j: produce(
            j,
            b"\x80broken",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": "plain_add", "id": "1", "lang": "py"},
        ),
        [],
    ),
    "broken compression": (
        lambda j: raw(
            j,
            b'{"body": "x", "headers": {"task": "plain_add", "id": "3", "compression": "zlib"}, '
            b'"properties": {"body_encoding": "rot13"}, "content-type": "application/json"}',
        ),
        [],
    ),
    "no id": (lambda j: raw(j, celery_message("[[1, 2], {}, {}]", task="plain_add")), []),
    "a body of another shape": (
        lambda j: raw(j, celery_message('{"x": 1}', task="plain_add", id="4")),
        [],
    ),
    "odd time limits": (
        lambda j: raw(j, celery_message("[[1, 2], {}, {}]", task="plain_add", id="5", timelimit=5)),
        [],
    ),
    "protocol 1 without an id": (lambda j: produce(j, {"task": "plain_add", "args": [1, 2]}), []),
    "pickle": (
        lambda j: produce(
            j,
            b"cos\nsystem\n(S'true'\ntR.",
            content_type="application/x-python-serialize",
            content_encoding="binary",
            headers={"task": "plain_add", "id": "2", "lang": "py"},
        ),
        [],
    ),
}

#: How many of them end in the dead letter.
DEAD = 22
#: What the reasons of those say that are no tasks of the app's, or can't be called.
REASONS = (
    "not a Celery message: not JSON",
    "without the body, headers and properties",
    "its headers name none",
    "can't be decoded",
    "MissingTenant",
    "no task is registered as 'nobody.knows': start the worker with the module",
)

#: Fields of the audit that differ from run to run.
_VOLATILE = {"pid", "fence", "at"}


@dataclass
class Seen:
    """What one way of delivery made of all cases."""

    states: dict[str, list[str]]
    results: dict[str, list[Any]]
    #: Reason, task, tenant and run of each.
    dead: Counter[tuple[str | None, ...]]
    audit: Counter[str]
    jobs: dict[str, str]


def run_all(folder: Path, way: str) -> Seen:
    """``way``: pull, push, or a Pub/Sub project, to be pushed by the emulator."""
    with ExitStack() as stack:
        jobs = stack.enter_context(jobs_in(folder))
        broker = broker_for(jobs.app)
        env = {"JOBS_FOLDER": str(folder)}
        submitted = {name: submit(jobs) for name, (submit, _) in CASES.items()}
        if way != "pull":
            service = Service(APP, folder, env=env, concurrency=2)
            stack.callback(service.close)
            stack.callback(lambda: print(service.log))
            service.ready()
            if way == "push":
                stack.enter_context(PushSubscription(broker, "celery", service.url))
            else:
                push_to(service.url, way)
        else:
            worker = Worker(APP, folder, env=env, concurrency=2)
            stack.callback(worker.close)
            stack.callback(lambda: print(worker.log))
            worker.ready()
        results: dict[str, list[AsyncResult]] = {name: [] for name in CASES}
        for name, found in submitted.items():
            for each in found if isinstance(found, list) else [found] * (found is not None):
                result = each() if callable(each) else each
                results[name].append(result)
                if len(results[name]) <= len(CASES[name][1]):
                    eventually(result.ready, what=name)
        if way in ("pull", "push"):
            eventually(lambda: broker.size("celery").total == 0, what="empty queue")
        else:
            eventually(lambda: len(broker.peek("celery.dead")) >= DEAD, what="the dead letter")
        if way != "pull":
            eventually(lambda: service.stats()["in_flight"] == 0, what="the last answer")
        return Seen(
            states={name: [r.state for r in found] for name, found in results.items()},
            results={name: [repr(r.result) for r in found] for name, found in results.items()},
            dead=Counter(
                tuple(m.attributes.get(name) for name in (DEATH_REASON, "task", "tenant", "run"))
                for m in broker.peek("celery.dead")
            ),
            audit=Counter(
                json.dumps({k: v for k, v in e.items() if k not in _VOLATILE}, sort_keys=True)
                for e in read_audit(folder)
            ),
            jobs={
                f"{j.job.task} {j.job.key}": f"{j.status.value} {j.generation} {j.attempt}"
                for j in store_for(jobs.app).list_jobs("acme").jobs
                if not j.job.key.startswith("task:")
            },
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Seen]:
    return {
        "pull": run_all(tmp_path_factory.mktemp("pull"), "pull"),
        "push": run_all(tmp_path_factory.mktemp("push"), "push"),
    }


@pytest.mark.parametrize("name", CASES)
def test_a_case_ends_the_same(name: str, seen: dict[str, Seen]) -> None:
    expected = CASES[name][1]
    for way in ("pull", "push"):
        assert seen[way].states[name][: len(expected)] == expected, way
    if expected:
        assert seen["push"].states[name] == seen["pull"].states[name]
        assert seen["push"].results[name] == seen["pull"].results[name]


def test_the_same_messages_are_dead_for_the_same_reasons(seen: dict[str, Seen]) -> None:
    assert seen["push"].dead == seen["pull"].dead
    assert sum(seen["push"].dead.values()) == DEAD
    reasons = [str(reason) for reason, *_ in seen["push"].dead]
    assert [part for part in REASONS if not any(part in reason for reason in reasons)] == []
    unknown = [named for reason, *named in seen["push"].dead if "nobody.knows" in str(reason)]
    assert sorted(unknown) == [["nobody.knows", "acme", run] for run in "xy"]


def test_the_same_was_done(seen: dict[str, Seen]) -> None:
    assert seen["push"].audit == seen["pull"].audit


def test_the_store_holds_the_same_jobs(seen: dict[str, Seen]) -> None:
    assert seen["push"].jobs == seen["pull"].jobs
    assert len(seen["push"].jobs) >= 15


@pytest.mark.slow
@pytest.mark.emulator
def test_pubsub_itself_pushes_to_the_same_end(
    seen: dict[str, Seen],
    pubsub_emulator: object,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The app's broker is Pub/Sub: calls, copies, retries and dead letters all go through it."""
    project = f"push-{uuid4().hex[:12]}"
    monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://{project}")
    monkeypatch.setenv("JOBS_LEASE_SECONDS", "30")
    pushed = run_all(tmp_path, project)
    pulled = seen["pull"]
    assert pushed.states == pulled.states
    assert pushed.results == pulled.results
    assert pushed.dead == pulled.dead
    assert pushed.audit == pulled.audit
    assert pushed.jobs == pulled.jobs
