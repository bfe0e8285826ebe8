"""Messages of other languages, and redelivered ones, in real workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery.exceptions import TimeoutError as CeleryTimeout
from google.cloud import pubsub_v1

from gwi_celery import queues
from gwi_celery.brokers.base import QueueSpec
from gwi_celery.brokers.pubsub.broker import PubSubBroker
from gwi_celery.testing.emulators import Emulator
from tests.machine import PATIENCE
from tests.pubsub.features.jobs import APP, notes
from tests.workers import eventually, worker

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]

Connect = Callable[..., PubSubBroker]


def hand_made(task: str, id: str, kwargs: dict[str, Any], **headers: str) -> dict[str, Any]:
    """A Celery message as docs/wire.md has it, without any of Celery's code."""
    callbacks = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": json.dumps([[], kwargs, callbacks]),
        "body_encoding": "utf-8",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {
            **{"lang": "go", "task": task, "id": id, "root_id": id, "parent_id": None},
            **{"group": None, "retries": 0, "eta": None, "expires": None},
            **{"timelimit": [None, None], **headers},
        },
        "properties": {
            "correlation_id": id,
            "delivery_info": {"exchange": "", "routing_key": "celery"},
        },
    }


def test_what_google_s_own_client_publishes_is_run(
    pubsub_emulator: Emulator,
    project: str,
    connect: Connect,
    jobs: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    app = jobs(f"pubsub://{project}")
    job = {
        "id": "job-1",
        "type": "shop.invoice",
        "tenantId": "acme",
        "runId": "r1",
        "payload": {"order": 7},
        "metadata": {"maxRetries": 5, "retryCount": 0, "priority": 3},
    }
    by_hand = hand_made(
        "shop.invoice",
        "job-2",
        {"order": 8, "tenant_id": "acme", "run_id": "r2"},
        gwi_tenant="acme",
        gwi_run="r2",
    )
    plain_by_hand = hand_made("add", "job-3", {"a": 20, "b": 3})
    with worker(APP, tmp_path, pool="solo") as running:
        publisher = pubsub_v1.PublisherClient()
        topic = publisher.topic_path(project, "gwi-celery")
        for message in (job, by_hand, plain_by_hand, {**job, "id": "bad-1", "payload": [7]}):
            publisher.publish(topic, json.dumps(message).encode()).result(timeout=PATIENCE)
        publisher.publish(topic, b"\xff no json", language="go").result(timeout=PATIENCE)
        publisher.stop()
        publisher.transport.close()

        assert app.AsyncResult("job-1").get(timeout=PATIENCE) == {"order": 7}
        assert app.AsyncResult("job-2").get(timeout=PATIENCE) == {"order": 8}
        assert app.AsyncResult("job-3").get(timeout=PATIENCE) == 23
        broker = connect(lease_seconds=10)
        dead = eventually(
            lambda: len(found := broker.peek("celery.dead")) == 2 and found, "the dead letter"
        )
        reasons = sorted(m.attributes["gwi-death-reason"] for m in dead)
        assert "'payload' is of type list: send an object" in reasons[0]
        assert "not JSON" in reasons[1]
        assert {m.attributes.get("language") for m in dead} == {None, "go"}
        assert running.stop() < 20
    assert sorted(notes(tmp_path)) == ["add 20 3", "invoice acme r1 7", "invoice acme r2 8"]


@pytest.mark.slow  # a worker asks every ten seconds; tests/cli/test_on_pubsub.py has the rest
def test_a_worker_takes_nothing_of_a_queue_that_was_paused_before_it_started(
    project: str, connect: Connect, jobs: Callable[[str], Any], tmp_path: Path
) -> None:
    app = jobs(f"pubsub://{project}")
    connect(lease_seconds=10).declare_queue(QueueSpec("celery"))
    queues.pause(app, "celery")
    with worker(APP, tmp_path, pool="solo") as running:
        running.wait_for("paused queues: 'celery'")
        result = app.send_task("add", (1, 2))
        running.wait_for(r"@test ready")
        with pytest.raises(CeleryTimeout):
            result.get(timeout=2)
        queues.resume(app, "celery")
        assert result.get(timeout=PATIENCE) == 3
        queues.pause(app, "celery")
        running.wait_for(r"paused queues: none[\s\S]*paused queues: 'celery'")
        with pytest.raises(CeleryTimeout):
            app.send_task("add", (1, 2)).get(timeout=2)
        running.stop()


def test_a_redelivered_message_says_so_and_a_finished_task_is_not_run_again(
    project: str, connect: Connect, jobs: Callable[[str], Any], tmp_path: Path
) -> None:
    """``worker_deduplicate_successful_tasks`` is on in these jobs."""
    app = jobs(f"pubsub://{project}")
    with worker(APP, tmp_path, pool="solo") as first:
        requeued = app.send_task("requeued")
        eventually(lambda: "requeued redelivered=True" in notes(tmp_path), "the redelivery")
        assert requeued.get(timeout=PATIENCE) is None
        result = app.send_task("once")
        assert result.get(timeout=PATIENCE) == "done"
        first.wait_killed()
    with worker(APP, tmp_path, pool="solo") as second:
        second.wait_for(rf"Task once\[{result.id}\] received")
        broker = connect(lease_seconds=10)
        eventually(lambda: not broker.receiver().poll("celery", 1), "its ack")
        app.send_task("add", (1, 1)).get(timeout=PATIENCE)
        second.stop()
    assert notes(tmp_path) == [
        "requeued redelivered=False",
        "requeued redelivered=True",
        "once redelivered=False",
        "add 1 1",
    ]
