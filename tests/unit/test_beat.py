"""What beat sends is named by the time it was due, whichever scheduler sends it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery, beat
from celery.schedules import crontab, schedule

from gwi_celery import ReliableTask
from gwi_celery.beat import due, mark, nominal_time
from tests.apps import fresh_app

CALL = {"tenant_id": "acme", "run_id": "nightly"}
NOON = datetime(2026, 11, 26, 12, 0, 0, 250_000, tzinfo=timezone.utc)


@pytest.fixture
def app() -> Iterator[Celery]:
    app = fresh_app()

    @app.task(shared=False, base=ReliableTask, name="t")
    def t(*, tenant_id: str, run_id: str) -> None: ...

    app.finalize()
    yield app
    app.close()


def entry(app: Celery, when: Any, last: datetime, **fields: Any) -> beat.ScheduleEntry:
    fields = {"name": "e", "task": "t", "kwargs": CALL, **fields}
    return beat.ScheduleEntry(app=app, schedule=when, last_run_at=last, **fields)


def at(now: datetime) -> Any:
    return lambda: now


@pytest.mark.parametrize(
    ("when", "nominal"),
    [
        # As the scheduler finds it due: some moments late, or after it was down for a while.
        (crontab(minute="0", nowfun=at(NOON + timedelta(hours=1, seconds=3))), "13:00:00"),
        (crontab(minute="0", nowfun=at(NOON + timedelta(hours=5))), "13:00:00"),
        (schedule(60.0, nowfun=at(NOON + timedelta(seconds=61))), "12:01:00"),
    ],
)
def test_the_nominal_time_is_the_schedules_not_the_sendings(
    app: Celery, when: Any, nominal: str
) -> None:
    assert nominal_time(entry(app, when, NOON)) == f"2026-11-26T{nominal}+00:00"


def test_the_nominal_times_of_a_short_interval_are_all_different(app: Celery) -> None:
    last, times = NOON, []
    for _ in range(20):
        now = last + timedelta(seconds=0.1)
        times.append(nominal_time(entry(app, schedule(0.1, nowfun=at(now)), last)))
        last = now
    assert len(set(times)) == 20


def test_a_schedule_in_another_zone_is_named_in_utc(app: Celery) -> None:
    app.conf.timezone = "America/New_York"
    when = crontab(minute="0", hour="8", nowfun=app.now, app=app)
    assert nominal_time(entry(app, when, datetime(2026, 11, 25, 20, tzinfo=timezone.utc))) == (
        "2026-11-26T13:00:00+00:00"
    )


def sent(app: Celery, scheduler: Any, one: beat.ScheduleEntry) -> dict[str, Any]:
    scheduler.apply_async(one)
    with app.connection_for_write() as connection:
        headers: dict[str, Any] = connection.default_channel.basic_get(
            "celery", no_ack=True
        ).headers
    return headers


@pytest.mark.parametrize("task", ["t", "registered elsewhere"])
def test_every_sending_is_a_job_of_its_own_under_one_lock(app: Celery, task: str) -> None:
    scheduler = beat.Scheduler(app=app)
    mark(SimpleNamespace(scheduler=scheduler))
    mark(SimpleNamespace(scheduler=scheduler))
    jobs, locks = set(), set()
    for hour in range(3):
        now = NOON + timedelta(hours=hour + 1)
        when = crontab(minute="0", nowfun=at(now))
        headers = sent(app, scheduler, entry(app, when, NOON + timedelta(hours=hour), task=task))
        assert headers["gwi_due"] == f"2026-11-26T{13 + hour}:00:00+00:00"
        resolved = app.tasks["t"].resolve_call((), CALL, headers, headers["id"])
        again = app.tasks["t"].resolve_call((), CALL, headers, "its redelivery, or a retry")
        assert resolved.job == again.job
        jobs.add(resolved.job)
        locks.add(resolved.lock)
    assert (len(jobs), len(locks)) == (3, 1)


def test_a_schedule_that_can_not_say_when_it_was_due_is_sent_all_the_same(app: Celery) -> None:
    class Odd(schedule):
        def remaining_estimate(self, last_run_at: Any) -> timedelta:
            raise ZeroDivisionError

    scheduler = beat.Scheduler(app=app)
    mark(SimpleNamespace(scheduler=scheduler))
    one = entry(app, Odd(60.0, app=app), NOON)
    assert sent(app, scheduler, one)["gwi_due"] != sent(app, scheduler, one)["gwi_due"]


def test_a_call_beside_beats_is_not_marked(app: Celery) -> None:
    assert due() is None
    app.tasks["t"].delay(**CALL)
    with app.connection_for_write() as connection:
        assert "gwi_due" not in connection.default_channel.basic_get("celery", no_ack=True).headers


def test_an_error_of_the_broker_leaves_no_mark_behind(app: Celery) -> None:
    scheduler = beat.Scheduler(app=app)
    mark(SimpleNamespace(scheduler=scheduler))
    bad = entry(app, schedule(60.0, app=app), NOON, kwargs={"run_id": "without a tenant"})
    with pytest.raises(beat.SchedulingError):
        scheduler.apply_async(bad)
    assert due() is None
