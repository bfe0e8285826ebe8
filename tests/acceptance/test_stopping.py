"""SIGTERM ends a worker in time while its broker is unavailable, whatever the worker is doing."""

from __future__ import annotations

import os
import signal
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery.testing.emulators import Emulator, EmulatorMissing, start_pubsub
from tests.acceptance.conftest import APP
from tests.acceptance.jobs import read_audit
from tests.workers import Worker, eventually

pytestmark = pytest.mark.acceptance

#: Cloud Run's patience, seconds.
PLATFORM = 10.0
POOLS = ["prefork", "threads", "solo", "gevent"]
CALL = {"tenant_id": "acme", "run_id": "r1"}


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """A Pub/Sub emulator that the test may stop; the app's broker is on it."""
    try:
        starting = start_pubsub(fresh=True)
        emulator = starting.__enter__()
    except EmulatorMissing as exc:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(exc))
    monkeypatch.setenv("PUBSUB_EMULATOR_HOST", emulator.endpoint)
    monkeypatch.setenv("JOBS_BROKER_URL", f"pubsub://p-{uuid.uuid4().hex[:20]}")
    monkeypatch.setenv("JOBS_LEASE_SECONDS", "10")
    yield emulator
    starting.__exit__(None, None, None)


@pytest.fixture
def stall(emulator: Emulator) -> Iterator[Callable[[str], None]]:
    """Makes the emulator unavailable: ``killed``, or ``stalled`` (alive and silent)."""
    stalled: list[int] = []

    def make_unavailable(how: str) -> None:
        if how == "killed":
            emulator.kill()
        else:
            assert emulator.pid is not None
            os.kill(emulator.pid, signal.SIGSTOP)
            stalled.append(emulator.pid)

    yield make_unavailable
    for pid in stalled:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


HOW = ["killed", "stalled"]


@pytest.mark.emulator
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("pool", POOLS)
class TestPubSub:
    def test_starting(
        self,
        pool: str,
        how: str,
        emulator: Emulator,
        stall: Callable[[str], None],
        jobs: ModuleType,
        tmp_path: Path,
    ) -> None:
        stall(how)
        worker = Worker(APP, tmp_path, pool=pool, env={"JOBS_FOLDER": str(tmp_path)})
        try:
            worker.wait_for("Trying again in|no answer|doesn't answer")
            assert worker.stop() < PLATFORM
        finally:
            print(worker.log)
            worker.close()

    def test_idle(
        self,
        pool: str,
        how: str,
        emulator: Emulator,
        stall: Callable[[str], None],
        jobs: ModuleType,
        start: Callable[..., Worker],
    ) -> None:
        worker = start(pool=pool)
        stall(how)
        took = worker.stop()
        print(worker.log)
        print(took)
        assert took < PLATFORM

    @pytest.mark.parametrize("task", ["hold", "deaf"])
    def test_busy(
        self,
        pool: str,
        how: str,
        task: str,
        emulator: Emulator,
        stall: Callable[[str], None],
        jobs: ModuleType,
        start: Callable[..., Worker],
        tmp_path: Path,
    ) -> None:
        worker = start(pool=pool)
        if task == "hold":
            jobs.hold.delay(**CALL, label="a", seconds=60)
        else:
            jobs.deaf.delay(**CALL, seconds=60)
        eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] in ("start", "deaf")])
        stall(how)
        took = worker.stop(timeout=40)
        print(worker.log)
        print(took)
        assert took < PLATFORM

    def test_stopping(
        self,
        pool: str,
        how: str,
        emulator: Emulator,
        stall: Callable[[str], None],
        jobs: ModuleType,
        start: Callable[..., Worker],
        tmp_path: Path,
    ) -> None:
        worker = start(pool=pool)
        jobs.deaf.delay(**CALL, seconds=1.5)
        eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "deaf"])
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
        stall(how)
        took = worker.stop()
        print(worker.log)
        print(took)
        assert took < PLATFORM
