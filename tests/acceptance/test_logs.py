"""What real workers write, at DEBUG: no argument, result or body, no forged line, nothing endless.

Markers are planted wherever a value can be, in messages that run and in all kinds that don't.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery

from gwi_celery import broker_for, setup
from gwi_celery.brokers.base import OutgoingMessage, QueueSpec
from tests.workers import Worker, eventually, worker

pytestmark = pytest.mark.acceptance

MARK = "m4rk3r"
FORGED = "[2026-11-26 00:00:00,000: INFO/MainProcess] Task forged"
#: An id that would end its line, and begin another; for a terminal, too.
LINES = f"id\n{FORGED}\r{FORGED}\x1b[2J\u2028{FORGED}\x85"

APP = """
import os, time
from celery import Celery
from gwi_celery import ReliableTask, setup
app = Celery("told", set_as_current=True)
setup(app)

@app.task(name="plain")
def plain(*args, **kwargs):
    return {"result": kwargs["result"]}

@app.task(name="own", base=ReliableTask, bind=True)
def own(self, *, tenant_id, run_id=None, secret=None):
    with self.cursor("c", start=9) as cursor:
        cursor.advance(secret["cursor"])
    return self.step("s", dict, secret)

@app.task(name="sleeps")
def sleeps():
    time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "told.py").write_text(APP)
    return tmp_path


@pytest.fixture
def app(folder: Path) -> Iterator[Celery]:
    app = Celery("sends", set_as_current=False)
    setup(app, folder=str(folder / "queue"))
    broker_for(app).declare_queue(QueueSpec("celery"))
    yield app
    app.close()


def start(folder: Path, **env: str) -> AbstractContextManager[Worker]:
    settings = {"GWI_FOLDER": str(folder / "queue"), **env}
    return worker("told", folder, env=settings, args=("--loglevel", "DEBUG"))


def plant(app: Celery) -> int:
    """Markers everywhere; how many of the messages will be in the dead letter."""
    secret = {"secret": MARK, "result": MARK}
    for _ in range(2):
        app.send_task(
            "plain", args=[MARK, [MARK]], kwargs=secret, task_id=f"{LINES}{os.urandom(4)!r}"
        )
    call: dict[str, Any] = {"tenant_id": "acme", "secret": {"cursor": 12, "text": MARK}}
    app.send_task("own", kwargs=call)
    app.send_task("own", kwargs=call, headers={"gwi_run": "r"})
    bad = [
        ("own", {**call, "tenant_id": f"a-{MARK}"}, {"gwi_tenant": "b"}),
        ("own", {**call, "tenant_id": [MARK]}, {}),
        ("own", {**call, "tenant_id": MARK * 500_000}, {}),
        ("own", {**call, "run_id": {"x": MARK}}, {}),
        ("own", {**call, "secret": {"cursor": MARK}}, {}),
        ("own", {**call, "secret": {"cursor": 1, "text": MARK}}, {}),
        ("nobody-knows", {"x": MARK}, {}),
        (f"nobody\n{FORGED}", {"x": MARK}, {}),
    ]
    for name, kwargs, headers in bad:
        app.send_task(name, args=[], kwargs=kwargs, headers=headers)
    typed = {"__type__": "datetime", "__value__": MARK}
    raw: list[Any] = [
        {"body": json.dumps([[typed], {}, {}])},
        {"body": json.dumps([[MARK], {}, {}])[:-9]},
        {"body": f"{MARK}\n{FORGED}"},
        {"body": MARK, "content-type": "application/x-python-serialize"},
        {"body": json.dumps([MARK, {}, {}])},
        {
            "body": json.dumps([[MARK], {}, {}]),
            "headers": {"task": "plain", "id": "e", "eta": "soon"},
        },
        {"body": json.dumps([[MARK], {}, {}]), "headers": {"task": "plain"}},
        {"body": json.dumps([[MARK], {"x": MARK}, {}]), "headers": {"x": 1}},
    ]
    for change in raw:
        message = {"headers": {"task": "plain", "id": "i"}, "properties": {}, "body": ""}
        send(app, json.dumps({"content-type": "application/json", **message, **change}))
    for text in (
        f'{{"secret": "{MARK}"',
        json.dumps({"body": typed, "headers": {}, "properties": {}}),
        json.dumps({"id": "j", "type": "own", "tenantId": [MARK]}),
        json.dumps({"id": "j", "type": "own", "tenantId": "t", "payload": MARK}),
        json.dumps(
            {"id": "j", "type": "own", "payload": {**call, "tenant_id": MARK}, "tenantId": "t"}
        ),
    ):
        send(app, text)
    return len(bad) + len(raw) + 5


def send(app: Celery, text: str) -> None:
    message = OutgoingMessage(text.encode(), {"routing_key": "celery"}, 0)
    broker_for(app).publish("", "celery", message)


def test_no_value_reaches_the_log_and_none_begins_a_line(folder: Path, app: Celery) -> None:
    broker = broker_for(app)
    with start(folder) as told:
        dead = plant(app)
        eventually(lambda: _drained(broker), what="every message settled")
        told.stop()
    log = told.log
    assert broker.size("celery.dead").total == dead, log  # type: ignore[union-attr]
    assert log.count("succeeded in") == 4
    assert "(hidden)" in log
    assert "TaskPool: Apply" in log, "at DEBUG"
    assert MARK not in log, next(line for line in log.splitlines() if MARK in line)
    assert FORGED in log
    for line in re.split(r"[\n\r\x85\u2028]", log):
        assert not line.startswith(FORGED)
    assert "\x1b" not in log
    assert max(map(len, log.splitlines())) < 40_000
    for message in broker.peek("celery.dead"):
        reason = message.attributes["gwi-death-reason"]
        assert MARK not in reason
        assert len(reason) <= 1000


def test_in_json_every_line_is_json_billiards_too(folder: Path, app: Celery) -> None:
    broker = broker_for(app)
    with start(folder, GWI_LOG_FORMAT="json", GWI_LEASE_SECONDS="10") as told:
        plant(app)
        eventually(lambda: _drained(broker), what="every message settled")
        app.send_task("sleeps")
        told.wait_for(r"Task sleeps\[")
        child = max(psutil.Process(told.process.pid).children(), key=lambda c: c.create_time())
        os.kill(child.pid, signal.SIGKILL)
        told.wait_for("SIGKILL")
    lines = told.log[told.log.index("ready.") :].splitlines()[1:]  # after Celery's banner
    parsed = [json.loads(line) for line in lines]
    assert MARK not in told.log
    assert any("SIGKILL" in p["message"] and p["logger"] == "multiprocessing" for p in parsed)
    assert max(map(len, lines)) < 60_000


def test_a_setting_shows_them(folder: Path, app: Celery) -> None:
    with start(folder, GWI_LOG_ARGUMENTS="true") as told:
        app.send_task("plain", args=["an-argument"], kwargs={"result": "a-result"})
        told.wait_for(r"succeeded in .*a-result")
    assert "an-argument" in told.log


def _drained(broker: Any) -> bool:
    return bool(broker.size("celery").total == 0)
