"""What is counted of all that is told, and how the metrics show it."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest

from gwi_celery.telemetry import events
from gwi_celery.telemetry.events import Event
from gwi_celery.telemetry.metrics import render
from gwi_celery.telemetry.stats import COUNTS, Stats
from tests.workers import eventually


@pytest.mark.parametrize("text", ["x" * 4016, "\U0001f600" * 400, "\ud800" * 3000, "\n" * 5000])
def test_a_task_with_a_long_id_does_not_run_for_ever(text: str) -> None:
    """What begins and ends in a child is told whole, whatever its ids are made of."""
    stats = Stats()
    events.listen(stats)
    try:
        pid = os.fork()
        if pid == 0:
            for n in range(2):
                facts = {"tenant": text, "run": text, "last_checkpoint": text, "x": text}
                events.emit("started", task_id=text + str(n), task="t")
                events.emit("claimed", task_id=text + str(n), **facts)
                events.emit("ended", task_id=text + str(n), task="t", state="SUCCESS")
            os._exit(0)
        os.waitpid(pid, 0)
        eventually(lambda: stats.counts()["processed"] == 2)
        assert stats.counts()["succeeded"] == 2
        assert stats.by_task() == {("t", "succeeded"): 2}
        assert stats.running() == []
    finally:
        events.ignore(stats)


def test_counts_and_the_running_job() -> None:
    stats = Stats()
    me = os.getpid()

    def tell(name: str, task_id: str = "t", pid: int = me, **facts: Any) -> None:
        stats(Event(name, pid, task_id, time.time(), facts))

    tell("started", task="shop.invoice")
    tell("claimed", tenant="acme", run="r1", attempt=2, fence=7)
    tell("checkpoint", checkpoint="list")
    shown = stats.snapshot()
    assert shown["in_flight"] == 1
    job = shown["current"][0]
    assert (job["type"], job["tenant"], job["run"]) == ("shop.invoice", "acme", "r1")
    assert (job["attempt"], job["fence"], job["last_checkpoint"]) == (2, 7, "list")
    assert job["age_seconds"] >= 0
    assert job["checkpoint_age_seconds"] >= 0
    tell("ended", task="shop.invoice", state="SUCCESS")
    tell("acked", "")
    # Answered from the store: a duplicate, not another success.
    tell("started", "u", task="shop.invoice")
    tell("duplicate", "u")
    tell("ended", "u", task="shop.invoice", state="SUCCESS")
    # A process that died in the middle of its job.
    tell("started", "v", pid=2**22 + 1, task="shop.invoice")
    shown = stats.snapshot()
    assert (shown["processed"], shown["succeeded"], shown["duplicates"]) == (2, 1, 1)
    assert (shown["in_flight"], shown["current"]) == (0, [])
    assert set(COUNTS) <= shown.keys()
    assert shown["versions"]["celery"]
    text = render(stats).decode()
    assert "gwi_duplicates_total 1.0" in text
    assert 'gwi_tasks_total{outcome="succeeded",task="shop.invoice"} 1.0' in text
    assert 'gwi_task_seconds_count{task="shop.invoice"} 2.0' in text


def test_steps_errors_lateness_and_calls_are_counted() -> None:
    stats = Stats()

    def tell(name: str, **facts: Any) -> None:
        stats(Event(name, 2**22 + 1, "t", time.time(), facts))

    tell("started", task="shop.invoice", late=7.0)
    tell("step", seconds=0.02)
    tell("failed", task="shop.invoice", error="ValueError")
    tell("ended", task="shop.invoice", state="FAILURE", rpcs={"Commit": 3})
    for n in range(100):
        tell("failed", task="shop.invoice", error=f"E{n}")
    assert len(stats.errors()) == 51, "an error's class comes from the job: there may be many"
    assert stats.errors()["shop.invoice", "other"] == 51
    assert stats.rpcs()["Commit"] >= 3
    text = render(stats).decode()
    assert 'gwi_late_seconds_sum{task="shop.invoice"} 7.0' in text
    assert 'gwi_step_seconds_count{task="shop.invoice"} 1.0' in text
    assert 'gwi_failures_total{error="ValueError",task="shop.invoice"} 1.0' in text
