"""What a worker tells: logs as Cloud Logging reads them, events, counts, traces."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask
from gwi_celery.config import Settings
from gwi_celery.gcp import rpcs
from gwi_celery.telemetry import events, logs, tracing
from gwi_celery.telemetry.events import Event
from gwi_celery.telemetry.metrics import render
from gwi_celery.telemetry.stats import COUNTS, Stats
from tests import zygote
from tests.workers import eventually

LABELS = "logging.googleapis.com/labels"


@pytest.fixture
def app(app: Celery) -> Celery:
    app.conf.task_always_eager = True
    return app


def line(record: logging.LogRecord, project: str = "p") -> dict[str, Any]:
    text = logs.CloudFormatter(project).format(record)
    assert "\n" not in text, "one line"
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def record(message: str = "hello %s", *args: object, level: int = logging.INFO) -> Any:
    return logging.LogRecord("a.b", level, __file__, 1, message, args, None)


# --- logs -----------------------------------------------------------------------------------------


def test_a_line_has_severity_time_and_message() -> None:
    found = line(record("hello %s", "you\nthere", level=logging.WARNING))
    assert (found["severity"], found["message"]) == ("WARNING", "hello you\nthere")
    assert found["time"].endswith("+00:00")
    assert LABELS not in found


def test_an_error_has_its_stack_trace() -> None:
    failed = record()
    try:
        raise ValueError("x")
    except ValueError:
        failed.exc_info = sys.exc_info()
    assert "ValueError: x" in line(failed)["stack_trace"]


def test_a_line_of_a_job_is_labelled_and_has_the_messages_trace(app: Celery) -> None:
    found: list[dict[str, Any]] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="labelled")
    def labelled(self: Any, *, tenant_id: str, run_id: str, secret: str) -> None:
        found.append(line(record()))

    trace, span = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    headers = {"traceparent": f"00-{trace}-{span}-01"}
    call = {"tenant_id": "acme", "run_id": "r1", "secret": "s3cret"}
    result = labelled.apply(kwargs=call, headers=headers)
    labels = found[0][LABELS]
    assert labels["type"] == "labelled"
    assert (labels["tenant"], labels["run"], labels["attempt"]) == ("acme", "r1", "1")
    assert labels["task_id"] == result.id
    assert int(labels["fence"]) > 0
    assert found[0]["logging.googleapis.com/trace"] == f"projects/p/traces/{trace}"
    assert found[0]["logging.googleapis.com/spanId"] == span
    assert "s3cret" not in json.dumps(found)


def test_a_process_that_a_job_has_forked_logs_too(app: Celery) -> None:
    found: list[dict[str, Any]] = []

    @app.task(shared=False, base=ReliableTask, bind=True, name="forking")
    def forking(self: Any, *, tenant_id: str, run_id: str) -> None:
        self._running_job.pid = -1  # as another process sees it
        found.append(line(record()))

    forking.apply(kwargs={"tenant_id": "acme", "run_id": "r1"}).get()
    assert found[0][LABELS]["type"] == "forking"
    assert "attempt" not in found[0][LABELS]


def test_what_celery_says_of_a_received_task_is_labelled_too() -> None:
    received = record()
    received.data = {"id": "t-1", "name": "shop.invoice", "kwargs": "{'secret': 's3cret'}"}
    found = line(received)
    assert found[LABELS] == {"type": "shop.invoice", "task_id": "t-1"}
    assert "s3cret" not in json.dumps(found)


def test_message_bodies_are_taken_out_of_celerys_own_lines() -> None:
    from celery.worker.consumer import consumer

    for text, args in (
        (consumer.UNKNOWN_TASK_ERROR, (KeyError("t"), "s3cret", {"kwargsrepr": "s3cret"}, {})),
        (consumer.INVALID_TASK_ERROR, (ValueError("bad"), "s3cret")),
        (consumer.MESSAGE_DECODE_ERROR, (ValueError("bad"), "t", "e", "s3cret", "s3cret")),
        (consumer.UNKNOWN_FORMAT, ("s3cret",)),
    ):
        told = record(text, *args)
        assert logs.WithoutArguments().filter(told)
        assert "s3cret" not in told.getMessage()


def test_a_line_is_bounded_and_is_one_line_whatever_is_in_it() -> None:
    class Odd:
        def __str__(self) -> str:
            raise ValueError("s3cret")

    text = logs.LineFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    for told in (
        record("%s", "x\n[INFO] forged" * 300_000),
        record("%s", Odd()),
        record("%d", "s3cret"),
    ):
        try:
            raise ValueError("y\n[INFO] forged" * 300_000)
        except ValueError:
            told.exc_info = sys.exc_info()
        for one in (text.format(told), logs.CloudFormatter("p").format(told)):
            assert len(one) < 80_000
            assert "s3cret" not in one
            assert one.endswith(("forged", "}"))
        for one in text.format(told).split("\n")[1:]:
            assert one.startswith("  ")
    escapes = text.format(record("%s", "a\x1b[31m\r\x85\u2028\ud800\tb é"))
    assert escapes == "[INFO] a\\x1b[31m\\r\\x85\\u2028\\ud800\tb é"
    assert record("%s", "x").getMessage() == "x", "a record is others' as well"


@pytest.mark.parametrize(
    ("settings", "terminal", "expected"),
    [
        ({}, False, False),
        ({"project": "p"}, False, True),
        ({"project": "p"}, True, False),
        ({"log_format": "json"}, True, True),
        ({"project": "p", "log_format": "text"}, False, False),
    ],
)
def test_people_get_text_and_cloud_logging_json(
    settings: dict[str, Any], terminal: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    assert logs.wants_json(Settings(**settings)) is expected


# --- events and counts ----------------------------------------------------------------------------


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


def test_nobody_who_listens_can_stop_a_job() -> None:
    def broken(event: Event) -> None:
        raise RuntimeError("a listener's bug")

    events.listen(broken)
    try:
        events.emit("claimed", task_id="t")
    finally:
        events.ignore(broken)


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


def test_calls_to_google_cloud_are_counted_in_each_process() -> None:
    before = rpcs.total().get("Commit", 0)
    rpcs.news()
    rpcs.count("Commit")
    assert rpcs.news() == {"Commit": 1}
    assert rpcs.news() == {}
    assert rpcs.total()["Commit"] == before + 1
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        rpcs.count("Pull")
        os.write(write, json.dumps(rpcs.news()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    assert json.loads(os.read(read, 100)) == {"Pull": 1}


# --- traces ---------------------------------------------------------------------------------------


def test_one_trace_from_the_call_through_a_worker_to_each_step(tmp_path: Path) -> None:
    """In a process of its own: OpenTelemetry's provider is one for a process, and stays."""
    done = zygote.run(_TRACED, folder=tmp_path, env={"GWI_TRACING": "true"})
    assert done.returncode == 0, done.stdout
    spans = json.loads(done.stdout.splitlines()[-1])
    names = {s["name"] for s in spans}
    assert {"apply_async/traced", "run/traced", "step one", "step two"} <= names
    assert len({s["trace"] for s in spans}) == 1, "one trace"
    by_name = {s["name"]: s for s in spans}
    attempts = [s for s in spans if s["name"] == "run/traced"]
    assert len(attempts) == 2, "a span for each attempt"
    assert [s["attributes"]["gwi.attempt"] for s in attempts] == [1, 2]
    assert {s["attributes"]["gwi.tenant"] for s in attempts} == {"acme"}
    assert by_name["step one"]["parent"] == attempts[0]["span"]
    assert by_name["step two"]["parent"] == attempts[1]["span"]
    assert "s3cret" not in done.stdout


_TRACED = """
import json
import os
import time
from celery import Celery
from celery.contrib.testing.worker import start_worker
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gwi_celery import ReliableTask, setup

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
app = Celery("traced")
setup(app, broker_url="embedded://:memory:/traced", store_url="embedded://:memory:/traced")

@app.task(base=ReliableTask, bind=True, name="traced", max_retries=1)
def traced(self, *, tenant_id, run_id, secret):
    self.step("one", lambda: 1)
    if self.attempt == 1:
        raise self.retry(countdown=0)
    self.step("two", lambda: 2)

with start_worker(app, pool="solo", perform_ping_check=False):
    result = traced.delay(tenant_id="acme", run_id="r1", secret="s3cret")
    result.get(timeout=60)
    while len([s for s in exporter.get_finished_spans() if s.name == "run/traced"]) < 2:
        time.sleep(0.01)
    print(json.dumps([
        {
            "name": s.name,
            "trace": f"{s.context.trace_id:x}",
            "span": s.context.span_id,
            "parent": s.parent and s.parent.span_id,
            "attributes": {k: v for k, v in s.attributes.items() if k.startswith("gwi.")},
        }
        for s in sorted(exporter.get_finished_spans(), key=lambda s: s.start_time)
    ]), flush=True)
    os._exit(0)
"""


def test_without_tracing_a_span_costs_nothing_and_says_nothing() -> None:
    assert tracing._tracer is None
    with tracing.span("step x"):
        tracing.describe(tenant="acme")
