"""Logs: JSON as Cloud Logging reads it, or Celery's text for people; never a task's arguments.

Each line of a job carries labels: type, tenant, run, task_id, attempt and fence.
"""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime, timezone
from typing import Any

from celery import signals
from celery._state import get_current_task

from gwi_celery.config import Settings
from gwi_celery.headers import RUN_HEADER, TENANT_HEADER

#: Python's level -> Cloud Logging's severity, where the names differ.
_SEVERITIES = {"NOTSET": "DEFAULT", "WARN": "WARNING", "FATAL": "CRITICAL"}

_LABELS = "logging.googleapis.com/labels"
_TRACE = "logging.googleapis.com/trace"
_SPAN = "logging.googleapis.com/spanId"

#: A W3C traceparent: version, trace, span, flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


class CloudFormatter(logging.Formatter):
    """One line of JSON for each record."""

    def __init__(self, project: str) -> None:
        super().__init__()
        self._project = project

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "severity": _SEVERITIES.get(record.levelname, record.levelname),
            "message": record.getMessage(),
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "logger": record.name,
            "process": record.processName,
        }
        labels = {key: str(value) for key, value in _labels(record).items() if value is not None}
        if labels:
            line[_LABELS] = labels
        trace, span = _trace()
        if trace is not None:
            line[_TRACE] = f"projects/{self._project}/traces/{trace}" if self._project else trace
            line[_SPAN] = span
        if record.exc_info:
            line["stack_trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def _labels(record: logging.LogRecord) -> dict[str, Any]:
    task = get_current_task()
    if task is None or task.request.called_directly:
        # The main process has no current task; Celery says of which it speaks.
        data = getattr(record, "data", None)
        known = data if isinstance(data, dict) else {}
        return {"type": known.get("name"), "task_id": known.get("id")}
    request = task.request
    headers = request.headers or {}
    labels = {
        "type": task.name,
        "task_id": request.id,
        "tenant": headers.get(TENANT_HEADER),
        "run": headers.get(RUN_HEADER),
        "retries": request.retries or None,
    }
    job = getattr(task, "_running_job", None)
    if job is not None:
        labels.update(
            tenant=job.record.job.tenant,
            run=job.record.run_id,
            attempt=job.record.attempt,
            fence=job.lease.fence,
        )
    return labels


def _trace() -> tuple[str | None, str | None]:
    """Trace and span: OpenTelemetry's, where it is on, else what came with the message."""
    otel = sys.modules.get("opentelemetry.trace")
    if otel is not None:
        context = otel.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    task = get_current_task()
    headers = (task.request.headers if task is not None else None) or {}
    found = _TRACEPARENT.fullmatch(str(headers.get("traceparent")))
    return (found[1], found[2]) if found else (None, None)


#: The logger of Celery's consumer, and the module that its texts are in.
_CONSUMER = "celery.worker.consumer.consumer"

#: Celery's text -> ours, and which of its arguments it keeps.
_SHORT: dict[str, tuple[str, tuple[int, ...]]] = {
    "UNKNOWN_TASK_ERROR": ("no task is registered as %s: the message is rejected", (0,)),
    "INVALID_TASK_ERROR": ("an invalid task message is rejected: %s", (0,)),
    "MESSAGE_DECODE_ERROR": ("a message's body can't be decoded: %r (%r, %r)", (0, 1, 2)),
    "UNKNOWN_FORMAT": ("a message that is no task is rejected", ()),
}


class WithoutArguments(logging.Filter):
    """Takes message bodies out of what Celery's consumer logs of odd messages."""

    def filter(self, record: logging.LogRecord) -> bool:
        # Whoever logs here has loaded the module; a producer need not.
        consumer = sys.modules.get(_CONSUMER)
        short = next(
            (s for n, s in _SHORT.items() if getattr(consumer, n, None) == record.msg), None
        )
        if short is not None and isinstance(record.args, tuple):
            record.msg, kept = short
            record.args = tuple(record.args[i] for i in kept)
            record.exc_info = record.exc_text = None
        return True


_without_arguments = WithoutArguments()


def wants_json(settings: Settings) -> bool:
    """Whether logs are JSON: where told so, or in a project and not on a terminal."""
    if settings.log_format:
        return settings.log_format == "json"
    return bool(settings.project) and not sys.stderr.isatty()


class _Setup:
    """Connected to Celery's signals; the app that was set up last decides for the process."""

    def __init__(self) -> None:
        self.settings: Settings | None = None

    def __call__(self, logger: logging.Logger, **kwargs: Any) -> None:
        if self.settings is not None and wants_json(self.settings):
            for handler in logger.handlers:
                handler.setFormatter(CloudFormatter(self.settings.project))


_setup = _Setup()
signals.after_setup_logger.connect(_setup, weak=False)
signals.after_setup_task_logger.connect(_setup, weak=False)


def configure(settings: Settings) -> None:
    """Have Celery's logging follow these settings once it sets it up."""
    _setup.settings = settings
    consumer = logging.getLogger(_CONSUMER)
    if settings.log_arguments:
        consumer.removeFilter(_without_arguments)
    else:
        consumer.addFilter(_without_arguments)
