"""What happens to nodes: killed, restarted, grown and shrunk."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from pytest_celery import CeleryTestSetup, CeleryTestWorker

from gwi_celery.testing.process import WorkerProcess
from tests.integration.tasks import add, hold, job
from tests.machine import PATIENCE
from tests.workers import eventually

pytestmark = pytest.mark.acceptance


@pytest.fixture(autouse=True)
def arguments() -> list[str]:
    """The worker's own; a test overrides them by parametrization."""
    return ["--concurrency", "1"]


@pytest.fixture
def default_worker_command(
    default_worker_container_cls: type[WorkerProcess], arguments: list[str]
) -> list[str]:
    return default_worker_container_cls.command(*arguments)


@pytest.fixture
def gwi_settings(gwi_broker: str) -> dict[str, float]:
    # A killed worker's messages and locks wait no longer than this. Pub/Sub takes no less than 10 s.
    return {"lease_seconds": 10 if gwi_broker == "pubsub" else 2, "lock_ttl": 2}


@pytest.mark.slow  # acceptance/test_kill.py has the job, testing/test_nodes.py the kill and the restart
def test_a_job_of_a_killed_node_ends_on_another_and_a_restarted_node_works_on(
    celery_setup: CeleryTestSetup,
    gwi_start_worker: Callable[..., CeleryTestWorker],
    tmp_path: Path,
) -> None:
    result = job.delay(tenant_id="acme", run_id="r1", folder=str(tmp_path))
    eventually((tmp_path / "r1.began").exists)
    celery_setup.worker.kill()
    assert celery_setup.worker.container.status == "exited"
    gwi_start_worker("--concurrency", "1")
    (tmp_path / "go").touch()
    assert result.get(timeout=PATIENCE) == 2, "the second attempt"
    assert len((tmp_path / "r1.first").read_text().splitlines()) == 1, "a recorded step runs once"
    assert len((tmp_path / "r1.began").read_text().splitlines()) == 2

    celery_setup.worker.restart()
    name = celery_setup.worker.hostname()
    inspect = celery_setup.app.control.inspect(destination=[name], timeout=PATIENCE)
    assert inspect.ping() == {name: {"ok": "pong"}}, "under its old name"
    assert add.delay(1, 2).get(timeout=PATIENCE) == 3


@pytest.mark.parametrize("arguments", [["--autoscale", "3,1"]])
def test_a_pool_grows_and_shrinks(celery_setup: CeleryTestSetup, tmp_path: Path) -> None:
    name = celery_setup.worker.hostname()
    inspect = celery_setup.app.control.inspect(destination=[name], timeout=PATIENCE)

    def processes() -> int:
        return len(inspect.stats()[name]["pool"]["processes"])

    assert processes() == 1
    held = [hold.delay(str(tmp_path), f"h{n}") for n in range(3)]
    for n in range(3):
        eventually((tmp_path / f"h{n}.began").exists, what=f"h{n} runs beside the others")
    assert processes() == 3
    (tmp_path / "go").touch()
    assert sorted(h.get(timeout=PATIENCE) for h in held) == ["h0", "h1", "h2"]
    celery_setup.app.control.autoscale(1, 1, destination=[name])
    eventually(lambda: processes() == 1, what="the pool shrinks")
    # The new children work as the first did.
    assert [add.delay(n, 1).get(timeout=PATIENCE) for n in range(5)] == [1, 2, 3, 4, 5]
