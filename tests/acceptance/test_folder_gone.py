"""The embedded folder is deleted, or a file in it replaced, under a worker: it says so and ends."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery.errors import BrokerUnusable
from gwi_celery.testing.emulators import free_port
from tests.machine import PATIENCE, Stopwatch
from tests.workers import Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance

CALL = {"tenant_id": "acme", "run_id": "r1"}
#: Seconds of an idle machine until a worker has noticed, and has ended.
SOON = 30.0


def ended(worker: Worker) -> int | None:
    """Its exit code, soon."""
    with Stopwatch() as watch:
        worker.wait_stopped(watch, SOON)
    return worker.process.returncode


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo", "gevent"])
def test_an_idle_worker_notices_and_ends(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool=pool)
    assert jobs.add.delay(1, 2, **CALL).get(timeout=PATIENCE) == 3
    shutil.rmtree(tmp_path / "gwi")
    assert ended(worker) == 1
    worker.wait_for(r"broker\.sqlite3 was deleted while process \d+ was using it")
    with pytest.raises(BrokerUnusable, match="was deleted while process"):
        jobs.add.delay(1, 2, tenant_id="acme", run_id="r2")
    assert not (tmp_path / "gwi" / "broker.sqlite3").exists(), "nobody has begun another file"


def test_a_busy_worker_is_not_ready_any_more_and_ends(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    port = free_port()
    env = {"PORT": str(port), "GWI_ENVIRONMENT": "development", "GWI_SHUTDOWN_GRACE": "5"}
    worker = start(pool="threads", env=env)

    def ready() -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/ready") as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as exc:
            return str(exc.read().decode())
        except urllib.error.URLError:  # it doesn't listen yet
            return ""

    eventually(lambda: '"ready"' in ready())
    jobs.deaf.delay(**CALL, seconds=60)
    eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "deaf"])
    shutil.rmtree(tmp_path / "gwi")
    assert '"unready"' in ready()
    assert ended(worker) == 1
    assert not (tmp_path / "gwi" / "broker.sqlite3").exists()
