"""Pub/Sub itself pushes to instances that come and go."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from google.cloud import pubsub_v1

from gwi_celery import broker_for
from gwi_celery.testing.emulators import free_port
from tests.machine import PATIENCE
from tests.service.pushing import Service, fifty_are_counted, jobs_in, numbers, push_to
from tests.workers import dead_letters, eventually

pytestmark = [pytest.mark.acceptance, pytest.mark.emulator]


@pytest.fixture
def project(pubsub_emulator: object, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"push-{uuid.uuid4().hex[:12]}"
    monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://{name}")
    monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
    return name


@pytest.fixture
def jobs(tmp_path: Path, project: str) -> Iterator[ModuleType]:
    with jobs_in(tmp_path) as module:
        yield module


@pytest.mark.slow  # test_cloud_run.py has a kill and a stop behind IAM, test_busy.py each by itself
def test_a_job_survives_a_kill_and_a_stop_of_the_instances_it_runs_on(
    jobs: ModuleType, project: str, serve: Callable[..., Service], tmp_path: Path
) -> None:
    port = free_port()
    push_to(f"http://127.0.0.1:{port}", project)
    first = serve(port=port)
    result = jobs.counted.delay(tenant_id="acme", run_id="r1", to=50, pause=0.05)
    eventually(lambda: len(numbers(tmp_path)) > 5)
    first.kill()
    second = serve(port=port)
    eventually(lambda: len(numbers(tmp_path)) > 20)
    assert second.stop(timeout=20) < 10
    assert second.process.returncode == 0
    assert len(numbers(tmp_path)) < 50
    serve(port=port)
    fifty_are_counted(jobs, result, tmp_path)


@pytest.mark.slow
def test_what_waits_for_its_time_keeps_nothing_else_waiting(
    jobs: ModuleType, project: str, serve: Callable[..., Service], tmp_path: Path
) -> None:
    """The emulator pushes two messages at a time: with their requests held the third would wait."""
    push_to(serve().url, project)
    began = time.monotonic()
    later = [
        jobs.counted.apply_async(
            kwargs={"tenant_id": "acme", "run_id": f"later-{n}", "to": 1}, countdown=25
        )
        for n in range(4)
    ]
    eventually(lambda: broker_for(jobs.app).has_queue("celery.later"))
    now = jobs.counted.delay(tenant_id="acme", run_id="now", to=1)
    assert now.get(timeout=PATIENCE) == 1
    assert not any(result.ready() for result in later)
    assert [result.get(timeout=PATIENCE) for result in later] == [1] * 4
    assert time.monotonic() - began >= 25
    assert dead_letters(broker_for(jobs.app)) == []


def test_messages_of_other_publishers_run_or_are_kept_and_never_loop(
    jobs: ModuleType, project: str, serve: Callable[..., Service], tmp_path: Path
) -> None:
    """A plain client, the plain job format, no attributes; wrapped, and unwrapped."""
    service = serve()
    push_to(service.url, project)
    publisher = pubsub_v1.PublisherClient()
    topic = publisher.topic_path(project, "gwi-celery")

    def publish(data: bytes) -> None:
        publisher.publish(topic, data).result(timeout=PATIENCE)

    def job(run: str) -> bytes:
        call: dict[str, Any] = {"id": run, "type": "counted", "tenantId": "acme", "runId": run}
        return json.dumps({**call, "payload": {"to": 1}}).encode()

    publish(job("wrapped"))
    for bad in (b"garbage", b'{"id": 1, "type": "x"}', job("x").replace(b"counted", b"nobody")):
        publish(bad)
    assert jobs.app.AsyncResult("wrapped").get(timeout=PATIENCE) == 1
    push_to(service.url, project, no_wrapper={"write_metadata": True})
    publish(job("unwrapped"))
    assert jobs.app.AsyncResult("unwrapped").get(timeout=PATIENCE) == 1
    broker = broker_for(jobs.app)
    eventually(lambda: broker.has_queue("celery.dead"))
    reasons = eventually(
        lambda: (d := broker.peek("celery.dead")) and len(d) == 3 and d, what="three dead letters"
    )
    text = " | ".join(m.attributes["gwi-death-reason"] for m in reasons)  # type: ignore[attr-defined]
    assert "not JSON" in text
    assert "'id' is 1: send a text" in text
    stats = eventually(lambda: (s := service.stats())["in_flight"] == 0 and s)
    assert isinstance(stats, dict)
    assert (stats["acked"], stats["dead_lettered"], stats["nacked"]) == (2, 3, 0)
    publisher.stop()
    publisher.transport.close()
