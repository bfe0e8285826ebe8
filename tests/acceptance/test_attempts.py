"""A message that takes its worker down ends in the dead letter; one that nobody tried never does."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from gwi_celery import broker_for
from gwi_celery.brokers.base import DEATH_DELIVERIES, DEATH_REASON
from tests.machine import PATIENCE
from tests.workers import Worker, dead_letters, drained, eventually, read_audit

pytestmark = pytest.mark.acceptance

TWICE = {"GWI_MAX_DELIVERIES": "2"}


def events(folder: Path, name: str) -> int:
    return sum(event["event"] == name for event in read_audit(folder))


def test_a_message_that_kills_its_pool_child_ends_in_the_dead_letter(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool="prefork", env=TWICE)
    jobs.kills.delay()
    broker = broker_for(jobs.app)
    [dead] = eventually(lambda: dead_letters(broker))
    assert dead.attributes[DEATH_REASON] == "delivered 2 times without an ack"
    assert dead.attributes[DEATH_DELIVERIES] == "2"
    assert events(tmp_path, "kills") == 2
    assert jobs.add.delay(2, 3, tenant_id="acme").get(timeout=PATIENCE) == 5
    assert worker.process.poll() is None


@pytest.mark.brokers("embedded")
@pytest.mark.parametrize("pool", ["solo", "threads"])
def test_a_message_that_kills_its_worker_ends_in_the_dead_letter(
    pool: str, jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    jobs.kills.delay()
    behind = jobs.add.delay(2, 3, tenant_id="acme")
    for _ in range(2):
        worker = start(pool=pool, env=TWICE)
        worker.wait_killed()
    start(pool=pool, env=TWICE)
    assert behind.get(timeout=PATIENCE) == 5
    broker = broker_for(jobs.app)
    [dead] = eventually(lambda: dead_letters(broker))
    assert dead.attributes[DEATH_DELIVERIES] == "2"
    assert events(tmp_path, "kills") == 2


@pytest.mark.brokers("embedded")
def test_what_a_killed_worker_had_fetched_and_not_begun_is_not_counted(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    args = ("--prefetch-multiplier", "4")
    jobs.naps.delay("first", 600)
    results = [jobs.add.delay(n, n, tenant_id="acme") for n in range(3)]
    for n in range(2):
        worker = start(pool="solo", env=TWICE, args=args)
        eventually(lambda n=n: events(tmp_path, "nap") == n + 1)
        assert broker_for(jobs.app).size("celery").leased == 4
        worker.kill()
        eventually(lambda: broker_for(jobs.app).size("celery").leased == 0)
    start(pool="solo", env=TWICE, args=args)
    assert [result.get(timeout=PATIENCE) for result in results] == [0, 2, 4]
    [dead] = eventually(lambda: dead_letters(broker_for(jobs.app)))
    assert dead.attributes[DEATH_REASON] == "delivered 2 times without an ack"


def test_what_a_stopped_worker_had_fetched_is_not_counted(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    args = ("--prefetch-multiplier", "4")
    results = []
    broker = broker_for(jobs.app)
    for n in range(3):
        worker = start(pool="threads", env=TWICE, args=args)
        results.append(jobs.naps.delay(str(n), 2))
        eventually(lambda n=n: events(tmp_path, "nap") > n)
        for _ in range(2):
            jobs.naps.delay("behind", 0)
        worker.wait_for("received", count=3)
        worker.stop()
        left = broker.receiver().poll("celery", 10)
        assert [delivery.attempts for delivery in left] == [0] * len(left)
        for delivery in left:
            broker.give_back(delivery)
    start(pool="threads", env=TWICE, args=args)
    eventually(lambda: events(tmp_path, "nap") == 9)
    eventually(lambda: drained(broker))
    assert dead_letters(broker) == []


@pytest.mark.slow
@pytest.mark.brokers("embedded")
def test_what_a_pool_child_was_given_just_before_a_stop_runs_once(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    worker = start(pool="prefork")

    def pool() -> Any:
        stats = jobs.app.control.inspect([worker.name], timeout=PATIENCE, limit=1).stats()
        return stats[worker.name]["pool"]

    [child] = pool()["processes"]
    os.kill(child, signal.SIGSTOP)  # it can't say that it took the job
    try:
        jobs.naps.delay("once", 1)
        eventually(lambda: pool()["writes"]["total"] == 1)
        worker.process.send_signal(signal.SIGTERM)
        worker.wait_for("Warm shutdown")
    finally:
        os.kill(child, signal.SIGCONT)
    worker.stop()
    assert events(tmp_path, "nap") == 1
    assert drained(broker_for(jobs.app)), worker.log


@pytest.mark.brokers("embedded")
def test_a_pool_child_that_dies_as_it_starts_is_started_again(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    (tmp_path / "die-young").touch()
    worker = start(pool="prefork")
    (tmp_path / "die-young").write_text("now")
    eventually(lambda: not (tmp_path / "die-young").exists())
    assert jobs.add.delay(2, 3, tenant_id="acme").get(timeout=PATIENCE) == 5
    assert worker.process.poll() is None


@pytest.mark.slow
def test_a_worker_that_replaces_its_children_all_the_time_adds_nothing(
    jobs: ModuleType, start: Callable[..., Worker], tmp_path: Path
) -> None:
    start(pool="prefork", concurrency=2, args=("--max-tasks-per-child", "1"))
    for n in range(20):
        jobs.told.delay(n)
    eventually(lambda: events(tmp_path, "told") >= 20)
    told = [event for event in read_audit(tmp_path) if event["event"] == "told"]
    assert sorted(event["n"] for event in told) == list(range(20))
    assert {(event["count"], event["redelivered"]) for event in told} == {(1, False)}
