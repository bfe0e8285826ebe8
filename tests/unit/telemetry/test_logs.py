"""What a worker writes: lines for people, and as Cloud Logging reads them."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest
from celery import Celery

from gwi_celery import ReliableTask
from gwi_celery.config import Settings
from gwi_celery.telemetry import logs

LABELS = "logging.googleapis.com/labels"


def line(record: logging.LogRecord, project: str = "p") -> dict[str, Any]:
    text = logs.CloudFormatter(project).format(record)
    assert "\n" not in text, "one line"
    parsed: dict[str, Any] = json.loads(text)
    return parsed


def record(message: str = "hello %s", *args: object, level: int = logging.INFO) -> Any:
    return logging.LogRecord("a.b", level, __file__, 1, message, args, None)


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


@pytest.mark.usefixtures("eager")
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


@pytest.mark.usefixtures("eager")
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
