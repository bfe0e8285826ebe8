"""What processes tell each other of their jobs, and what becomes of who tells and who listens."""

from __future__ import annotations

import os
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask
from gwi_celery.telemetry import events
from gwi_celery.telemetry.events import Event
from tests.workers import eventually


def test_an_event_of_a_forked_child_reaches_its_parent_and_a_killed_one_harms_nothing() -> None:
    heard: list[Event] = []
    events.listen(heard.append)
    try:
        for n in range(3):
            pid = os.fork()
            if pid == 0:
                events.emit("claimed", task_id=f"t-{n}", tenant="x" * 5000, attempt=n)
                os.kill(os.getpid(), 9)
            os.waitpid(pid, 0)
        events.emit("busy", task_id="")
        eventually(lambda: len(heard) >= 4, what="four events")
    finally:
        events.ignore(heard.append)
    children = [e for e in heard if e.name == "claimed"]
    assert [e.task_id for e in children] == ["t-0", "t-1", "t-2"]
    assert all(len(e.facts["tenant"]) < 500 for e in children), "shortened: for people only"
    assert all(e.pid != os.getpid() for e in children)


def test_a_process_that_was_forked_before_anyone_listened_has_listeners_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server that loads the app and then forks, as gunicorn --preload: /stats would count nothing."""
    monkeypatch.setattr(events, "_hook", events._Hook())
    pid = os.fork()
    if pid == 0:
        heard: list[Event] = []
        events.listen(heard.append)
        events.emit("busy", task_id="")
        os._exit(len(heard))
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 1


def test_nobody_who_listens_can_stop_a_job() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("a listener's bug")

    events.listen(broken)
    try:
        events.emit("claimed", task_id="t")
    finally:
        events.ignore(broken)


@pytest.mark.usefixtures("eager")
def test_a_job_tells_its_steps_its_error_and_how_late_it_is(app: Celery) -> None:
    heard: list[Event] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="telling")
    def telling(self: Any, *, tenant_id: str, run_id: str) -> None:
        self.step("one", lambda: 1)
        raise KeyError("x")

    events.listen(heard.append)
    try:
        telling.apply(kwargs={"tenant_id": "acme", "run_id": "r1"})
    finally:
        events.ignore(heard.append)
    told = {event.name: event.facts for event in heard}
    assert told["step"]["seconds"] >= 0
    assert told["failed"] == {"task": "telling", "error": "KeyError"}
    assert told["started"] == {"task": "telling", "retries": 0}


def test_how_late_a_task_begins_is_by_its_eta() -> None:
    due = datetime.now(timezone.utc) - timedelta(seconds=5)
    for text in (due.isoformat(), due.isoformat().replace("+00:00", "Z"), str(due)[:-6]):
        assert 5 <= (events._late(text) or 0) < 60
    assert events._late((due + timedelta(hours=1)).isoformat()) == 0
    for none in (None, "", "soon", 7):
        assert events._late(none) is None  # type: ignore[arg-type]
