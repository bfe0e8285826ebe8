"""SIGTERM ends a worker in time while its broker is unavailable, whatever the worker is doing.

Each test has one worker of each pool, on an emulator of its own or on one file.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery.gcp.emulators import PUBSUB_HOST
from gwi_celery.testing.emulator_fixtures import named
from gwi_celery.testing.emulators import Emulator
from tests import zygote
from tests.acceptance.conftest import APP
from tests.machine import PATIENCE, Stopwatch
from tests.twins import own_pubsub
from tests.workers import Worker, eventually, read_audit

pytestmark = pytest.mark.acceptance

#: Cloud Run's, seconds.
GRACE = 10.0
POOLS = ["prefork", "threads", "solo", "gevent"]


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A Pub/Sub emulator that the test may stop; the app's broker is on it."""
    with named(own_pubsub(), PUBSUB_HOST) as emulator:
        monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://p-{uuid.uuid4().hex[:20]}")
        monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
        yield emulator


@pytest.fixture
def take_away(emulator: Emulator) -> Iterator[Callable[[str], None]]:
    """Makes the emulator unavailable: ``killed``, or ``stalled`` (there, and silent)."""
    stalled: list[int] = []

    def take_away(how: str) -> None:
        if how == "killed":
            emulator.kill()
            return
        assert emulator.pid is not None
        stalled.append(emulator.pid)
        os.kill(emulator.pid, signal.SIGSTOP)

    yield take_away
    for pid in stalled:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


@pytest.fixture
def start_all(tmp_path: Path, jobs: ModuleType) -> Iterator[Callable[[], list[Worker]]]:
    """Starts a worker of each pool, each on a queue of its name; doesn't wait until they are ready."""
    started: list[Worker] = []

    def start_all() -> list[Worker]:
        started.extend(
            Worker(APP, tmp_path, pool=pool, args=("-Q", pool), env={"JOBS_FOLDER": str(tmp_path)})
            for pool in POOLS
        )
        return started

    yield start_all
    for worker in started:
        worker.close()


def all_end(workers: list[Worker]) -> None:
    with Stopwatch() as watch:
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait_stopped(watch, GRACE)
    assert [worker.process.returncode for worker in workers] == [0] * len(workers)


def keep_busy(jobs: ModuleType, workers: list[Worker], folder: Path, seconds: float) -> None:
    """Each has a job without a boundary for that long."""
    for worker in workers:
        worker.ready()
    for pool in POOLS:
        call = {"tenant_id": "acme", "run_id": pool, "seconds": seconds}
        jobs.deaf.apply_async(kwargs=call, queue=pool)
    busy = len(POOLS)
    eventually(lambda: [e["event"] for e in read_audit(folder)].count("deaf") == busy)


@pytest.mark.emulator
@pytest.mark.parametrize("how", ["killed", "stalled"])
class TestPubSubIsGone:
    @pytest.mark.slow
    def test_workers_that_are_starting_end_in_time(
        self,
        how: str,
        take_away: Callable[[str], None],
        start_all: Callable[[], list[Worker]],
    ) -> None:
        take_away(how)
        workers = start_all()
        for worker in workers:
            worker.wait_for(r"the Pub/Sub emulator at \S+ \(PUBSUB_EMULATOR_HOST\) does not answer")
        all_end(workers)

    @pytest.mark.slow  # busy ones have more to end
    def test_idle_workers_end_in_time(
        self,
        how: str,
        take_away: Callable[[str], None],
        start_all: Callable[[], list[Worker]],
    ) -> None:
        workers = [worker.ready() for worker in start_all()]
        take_away(how)
        if how == "killed":
            for worker in workers:  # Celery's heartbeat meets with it first, and tries without end
                worker.wait_for("does not answer")
        all_end(workers)

    def test_busy_workers_end_in_time(
        self,
        how: str,
        take_away: Callable[[str], None],
        jobs: ModuleType,
        start_all: Callable[[], list[Worker]],
        tmp_path: Path,
    ) -> None:
        workers = start_all()
        keep_busy(jobs, workers, tmp_path, seconds=120)
        take_away(how)
        all_end(workers)

    @pytest.mark.slow
    def test_workers_that_are_stopping_already_end_in_time(
        self,
        how: str,
        take_away: Callable[[str], None],
        jobs: ModuleType,
        start_all: Callable[[], list[Worker]],
        tmp_path: Path,
    ) -> None:
        workers = start_all()
        keep_busy(jobs, workers, tmp_path, seconds=120)
        for worker in workers:
            worker.process.send_signal(signal.SIGTERM)
            worker.wait_for("Warm shutdown")
        take_away(how)
        all_end(workers)


@pytest.mark.parametrize("busy", [pytest.param(False, marks=pytest.mark.slow), True])
def test_workers_whose_file_is_locked_for_long_end_in_time(
    busy: bool, jobs: ModuleType, start_all: Callable[[], list[Worker]], tmp_path: Path
) -> None:
    workers = start_all()
    if busy:
        keep_busy(jobs, workers, tmp_path, seconds=120)
    for worker in workers:
        worker.ready()
    locker = sqlite3.connect(tmp_path / "gwi" / "broker.sqlite3", isolation_level=None)
    try:
        locker.execute("BEGIN IMMEDIATE")
        all_end(workers)
    finally:
        locker.close()


def test_a_worker_whose_broker_answers_waits_for_its_job(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool="threads")
    result = jobs.deaf.delay(tenant_id="acme", run_id="r1", seconds=12)
    eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "deaf"])
    stopped_at = time.monotonic()
    worker.stop()
    assert time.monotonic() - stopped_at > 9, "longer than a job without its broker has"
    assert result.get(timeout=PATIENCE) == "done"


TEST_SUITE = """
import time
from celery import Celery
from celery.contrib.testing.worker import start_worker
from gwi_celery import setup
from gwi_celery.worker.grace import _CLOSING
app = Celery("tests")
setup(app, broker_url="embedded://:memory:/x", store_url="embedded://:memory:/x")
with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=60):
    pass
time.sleep(_CLOSING + 2)
print("goes on")
"""


def test_a_worker_in_a_thread_of_anothers_process_leaves_that_alone(tmp_path: Path) -> None:
    """As Celery's own fixtures start one within a test suite."""
    done = zygote.run(TEST_SUITE, folder=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "goes on" in done.stdout
