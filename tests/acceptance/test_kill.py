"""kill -9 at each point of the protocol: nothing lost, no finished step twice, one outcome."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from gwi_celery import broker_for, store_for
from gwi_celery.stores.base import JobStatus
from tests.machine import PATIENCE
from tests.workers import Worker, dead_letters, drained, eventually, read_audit

pytestmark = pytest.mark.acceptance

POINTS = ["after-claim", "inside-step", "after-save", "after-finish"]


def assert_kept(jobs: ModuleType, folder: Path, attempts: int) -> None:
    """What must hold at the end of any of these tests."""
    trail = read_audit(folder)
    fences = [e["fence"] for e in trail if e["event"] == "attempt"]
    assert fences == sorted(set(fences)), "fencing tokens grow strictly"
    assert len(fences) == attempts
    broker = broker_for(jobs.app)
    eventually(lambda: drained(broker), what="the queue is empty")
    store = store_for(jobs.app)
    page = store.list_jobs("acme")
    assert [job.status for job in page.jobs] == [JobStatus.SUCCEEDED]
    assert store.list_locks("acme") == []


def kill_and_go_on(
    pool: str, point: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """A job whose worker is killed at a point ends on the next worker as if nothing had been."""
    (tmp_path / "crash-at").write_text(point)
    worker = start(pool=pool)
    result = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    worker.wait_killed()
    start(pool=pool)
    assert result.get(timeout=PATIENCE) == {"total": 6, "run": "r1"}

    trail = read_audit(tmp_path)
    assert [e["point"] for e in trail if e["event"] == "crash"] == [point]
    runs = Counter(e["name"] for e in trail if e["event"] == "step")
    expected = {"s1": 1, "s2": 2 if point == "inside-step" else 1, "s3": 1}
    assert runs == expected
    # After the finish there is no second attempt at all: the duplicate is answered.
    attempts = [e for e in trail if e["event"] == "attempt"]
    assert_kept(
        jobs, tmp_path, attempts={"after-claim": 1, "after-finish": 1}.get(point, len(attempts))
    )

    again = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    assert again.get(timeout=PATIENCE) == {"total": 6, "run": "r1"}
    assert Counter(e["name"] for e in read_audit(tmp_path) if e["event"] == "step") == expected


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
@pytest.mark.parametrize("point", POINTS)
def test_a_killed_worker_loses_nothing_and_repeats_no_finished_step(
    pool: str, point: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    kill_and_go_on(pool, point, jobs, start, tmp_path)


@pytest.mark.parametrize("point", ["inside-step", "after-save", "after-finish"])
def test_a_killed_pool_child_is_replaced_at_once(
    point: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """The parent frees the dead child's lock: the job goes on without waiting for its TTL."""
    (tmp_path / "crash-at").write_text(f"{point} child")
    start(pool="prefork")
    result = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    assert result.get(timeout=PATIENCE) == {"total": 6, "run": "r1"}
    runs = Counter(e["name"] for e in read_audit(tmp_path) if e["event"] == "step")
    assert runs == {"s1": 1, "s2": 2 if point == "inside-step" else 1, "s3": 1}


def test_a_killed_main_process_leaves_its_child_to_finish(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """An orphan that still holds the lock finishes; the next worker waits for it, then answers."""
    (tmp_path / "crash-at").write_text("inside-step main")
    worker = start(pool="prefork")
    result = jobs.three_steps.delay(tenant_id="acme", run_id="r1")
    worker.process.wait(timeout=PATIENCE)
    start(pool="prefork")
    assert result.get(timeout=PATIENCE) == {"total": 6, "run": "r1"}
    runs = Counter(e["name"] for e in read_audit(tmp_path) if e["event"] == "step")
    assert runs["s1"] == 1
    assert_kept(
        jobs, tmp_path, attempts=len([e for e in read_audit(tmp_path) if e["event"] == "attempt"])
    )


def test_a_cursor_goes_on_where_it_was(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start()
    result = jobs.counted.delay(tenant_id="acme", run_id="r1", to=40, pause=0.02)
    for kill in (1, 2):
        eventually(
            lambda kill=kill: (
                len([e for e in read_audit(tmp_path) if e["event"] == "n"]) >= kill * 8
            )
        )
        worker.kill()
        worker = start()
    assert result.get(timeout=PATIENCE) == 40
    counts = Counter(e["n"] for e in read_audit(tmp_path) if e["event"] == "n")
    assert set(counts) == set(range(40))
    assert sum(counts.values()) <= 42, "at most the item in flight is done again, at each kill"


def test_a_worker_that_slept_through_its_lease_writes_nothing(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """SIGSTOP, takeover, SIGCONT: the zombie finds its lease lost and leaves the outcome alone."""
    zombie = start(pool="solo")
    result = jobs.hold.delay(tenant_id="acme", run_id="r1", label="x", seconds=1.5)
    eventually(lambda: [e for e in read_audit(tmp_path) if e["event"] == "start"])
    os.killpg(zombie.process.pid, signal.SIGSTOP)
    try:
        start(pool="solo")
        assert result.get(timeout=PATIENCE) == "x"
    finally:
        os.killpg(zombie.process.pid, signal.SIGCONT)
    zombie.wait_for(r"lost its lease")
    trail = read_audit(tmp_path)
    assert [e["event"] for e in trail].count("start") == 2
    assert [e["event"] for e in trail].count("end") == 1
    broker = broker_for(jobs.app)
    eventually(lambda: drained(broker), what="the zombie's message is gone too")


def test_a_job_that_kills_its_worker_every_time_is_given_up(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    """The cap counts on the job, not the message: copies and redeliveries don't reset it."""
    start(pool="prefork")
    result = jobs.poison.delay(tenant_id="acme", run_id="r1")
    with pytest.raises(Exception, match="took its worker down 3 times"):
        result.get(timeout=PATIENCE)
    assert len([e for e in read_audit(tmp_path) if e["event"] == "attempt"]) == 3
    broker = broker_for(jobs.app)
    # Pub/Sub may keep one twice: a publish that is tried again may have taken effect before.
    for message in eventually(lambda: dead_letters(broker)):
        assert json.loads(message.data)["headers"]["id"] == result.id
        assert "CrashLimitExceeded" in message.attributes["gwi-death-reason"]
