"""Reliable tasks in real workers: redriven, one after the other, handed on. Their ends: tests/ends."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.stores.base import JobRef, JobStatus
from tests.machine import PATIENCE
from tests.workers import Worker, dead_letters, drained, eventually, read_audit

pytestmark = pytest.mark.acceptance

CALL = {"tenant_id": "acme", "run_id": "r1"}


def status(jobs: ModuleType, task: str, run: str = "r1") -> JobStatus | None:
    record = store_for(jobs.app).get_job(JobRef("acme", task, f"run:{run}"))
    return None if record is None else record.status


def dead(jobs: ModuleType, count: int = 1) -> list[str]:
    """The reasons in the dead letter, once there are ``count``."""
    broker = broker_for(jobs.app)

    def reasons() -> list[str]:
        found = [m.attributes["gwi-death-reason"] for m in dead_letters(broker)]
        return found if len(found) >= count else []

    return eventually(reasons, what="the dead letter")  # type: ignore[return-value]


def test_a_failed_job_is_kept_in_the_dead_letter_and_runs_again_when_redriven(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start()
    result = jobs.fails.delay(**CALL)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        result.get(timeout=PATIENCE)
    assert dead(jobs) == ["RuntimeError: broken on purpose"]
    assert status(jobs, "fails") is JobStatus.FAILED

    (tmp_path / "repaired").touch()
    broker = broker_for(jobs.app)
    assert broker.redrive("celery") == 1
    eventually(lambda: status(jobs, "fails") is JobStatus.SUCCEEDED)
    trail = read_audit(tmp_path)
    assert [e["event"] for e in trail].count("first") == 1, "its finished step did not run again"
    assert [e["generation"] for e in trail if e["event"] == "attempt"] == [1, 2]
    assert jobs.fails.delay(**CALL).get(timeout=PATIENCE) == "repaired"
    assert dead_letters(broker) == []


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_jobs_of_one_run_wait_for_each_other_at_no_cost(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start(pool=pool, concurrency=3)
    first = jobs.hold.delay(**CALL, label="a", seconds=0.6)
    eventually(lambda: read_audit(tmp_path))
    duplicate = jobs.hold.delay(**CALL, label="a", seconds=0.6)
    other = jobs.three_steps.delay(**CALL)
    free = jobs.hold.delay(tenant_id="acme", run_id="r2", label="free", seconds=0.01)
    assert free.get(timeout=PATIENCE) == "free"
    assert first.get(timeout=PATIENCE) == duplicate.get(timeout=PATIENCE) == "a"
    assert other.get(timeout=PATIENCE)["total"] == 6
    trail = read_audit(tmp_path)
    labels = [e["label"] for e in trail if e["event"] == "start"]
    assert sorted(labels) == ["a", "free"], "the duplicate was answered, not run"
    ended = next(e["at"] for e in trail if e["event"] == "end" and e["label"] == "a")
    assert [e for e in trail if e["event"] == "attempt"], "the other job of the run ran"
    assert ended
    broker = broker_for(jobs.app)
    eventually(lambda: drained(broker))
    assert dead_letters(broker) == []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_worker_that_stops_hands_its_job_to_the_next(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool=pool)
    result = jobs.counted.delay(**CALL, to=60, pause=0.05)
    eventually(lambda: len([e for e in read_audit(tmp_path) if e["event"] == "n"]) > 3)
    assert worker.stop() < 5
    assert worker.process.returncode == 0
    done = len([e for e in read_audit(tmp_path) if e["event"] == "n"])
    assert done < 60, "it was interrupted"
    broker = broker_for(jobs.app)
    # Another connection has made the queue: this one may not find it for some seconds.
    eventually(lambda: broker.has_queue("celery"))
    [waiting] = broker.peek("celery")
    assert waiting.state == "ready", "handed back at once"
    assert json.loads(waiting.data)["headers"]["retries"] == 0, "at no cost"
    start(pool=pool)
    assert result.get(timeout=PATIENCE) == 60
    numbers = [e["n"] for e in read_audit(tmp_path) if e["event"] == "n"]
    assert numbers == list(range(60)), "it went on where it was, with nothing done twice"


def test_the_time_until_a_worker_takes_a_message_is_not_a_polling_interval(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """Not a benchmark: an idle second would show polling or a lost wake-up."""
    start(pool="solo")
    jobs.plain_add.delay(0, 0).get(timeout=PATIENCE)
    waits = []
    for n in range(20):
        sent = time.time()
        jobs.record.delay(n).get(timeout=PATIENCE)
        waits.append(
            next(e["at"] for e in reversed(read_audit(tmp_path)) if e.get("label") == n) - sent
        )
    assert sorted(waits)[len(waits) // 2] < 0.5


def test_a_store_that_can_not_be_used_postpones_its_jobs_until_it_can(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    result = jobs.three_steps.delay(**CALL)
    for name in ("store.sqlite3", "store.sqlite3-wal", "store.sqlite3-shm"):
        (tmp_path / "gwi" / name).unlink(missing_ok=True)
    broken = tmp_path / "gwi" / "store.sqlite3"
    broken.parent.mkdir(exist_ok=True)
    broken.write_text("this is not a database, however long one looks at it. " * 100)
    worker = start(pool="solo")
    worker.wait_for(r"waits .* the store can't be used .*not a SQLite database", count=2)
    broken.unlink()
    store = store_for(jobs.app)
    eventually(lambda: status(jobs, "three_steps") is JobStatus.SUCCEEDED)
    assert store.list_locks("acme") == []
    assert result.get(timeout=PATIENCE)["total"] == 6
    assert dead_letters(broker_for(jobs.app)) == []
