"""A real Flower sees the worker and its tasks, and can send one."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_celery import CeleryTestSetup

from gwi_celery.testing.emulators import free_port
from gwi_celery.testing.process import Machine, WorkerProcess
from tests.integration.tasks import add, fail
from tests.machine import PATIENCE
from tests.workers import eventually

pytestmark = pytest.mark.acceptance


@pytest.fixture
def default_worker_command(default_worker_container_cls: type[WorkerProcess]) -> list[str]:
    return default_worker_container_cls.command("--pool", "solo", "-E")


class Flower:
    def __init__(self, machine: Machine, port: int) -> None:
        self.machine = machine
        self._url = f"http://127.0.0.1:{port}"

    def page(self, path: str, body: dict[str, Any] | None = None) -> str:
        """A page's text; empty while there is none."""
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(self._url + path, data, timeout=30) as answer:
                return answer.read().decode()
        except (urllib.error.URLError, ConnectionError):
            assert self.machine.status == "running", self.machine.logs().decode()
            return ""

    def json(self, path: str, body: dict[str, Any] | None = None) -> Any:
        return json.loads(self.page(path, body) or "{}")


@pytest.fixture
def flower(
    celery_setup: CeleryTestSetup,
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
    tmp_path: Path,
) -> Iterator[Flower]:
    port = free_port()
    machine = Machine(
        ["celery", "-A", "app", "flower", "--address=127.0.0.1", f"--port={port}"],
        tmp_path / "flower",
        env={**default_worker_env, "FLOWER_UNAUTHENTICATED_API": "true"},
        content=default_worker_initial_content,
    )
    machine.start()
    try:
        yield Flower(machine, port)
    finally:
        machine.stop()


def test_flower_shows_workers_and_tasks_and_sends_one(
    celery_setup: CeleryTestSetup, flower: Flower
) -> None:
    name = celery_setup.worker.hostname()
    eventually(lambda: flower.json("/api/workers?status=1").get(name), what="the worker is online")
    eventually(
        lambda: flower.json("/api/workers?refresh=1").get(name, {}).get("registered"),
        what="Flower's inspection is answered",
    )
    worker = flower.json("/api/workers")[name]
    assert add.name in worker["registered"]
    assert [queue["name"] for queue in worker["active_queues"]] == ["celery"]

    added, failed = add.delay(20, 22), fail.delay("on purpose")
    assert added.get(timeout=PATIENCE) == 42
    failed.get(timeout=PATIENCE, propagate=False)

    def states() -> dict[str, str]:
        return {key: task["state"] for key, task in flower.json("/api/tasks").items()}

    eventually(lambda: states() == {added.id: "SUCCESS", failed.id: "FAILURE"}, what="both tasks")
    shown = flower.json(f"/api/task/info/{added.id}")
    assert (shown["name"], shown["result"], shown["worker"]) == (add.name, "42", name)
    assert name in flower.page("/workers")
    assert "on purpose" in flower.page(f"/task/{failed.id}")

    sent = flower.json(f"/api/task/async-apply/{add.name}", {"args": [1, 2]})
    result = celery_setup.app.AsyncResult(sent["task-id"])
    assert result.get(timeout=PATIENCE) == 3
