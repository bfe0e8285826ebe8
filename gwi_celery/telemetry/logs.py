"""Logs: JSON as Cloud Logging reads it, or Celery's text for people; without tasks' arguments or results.

A filter on Celery's own loggers removes arguments and results, whichever handler prints the record.
Formatters keep each record on one line, whatever an id or an error's text holds, and limit its size.

Each line of a job carries labels: type, tenant, run, task_id, attempt and fence.
"""

from __future__ import annotations

import copy
import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

from celery import signals
from celery._state import get_current_task
from celery.utils.log import get_multiprocessing_logger

from gwi_celery.config import Settings
from gwi_celery.errors import GwiError, OutsideAttempt
from gwi_celery.headers import RUN_HEADER, TENANT_HEADER
from gwi_celery.text import public_error, safe_text

#: Python's level -> Cloud Logging's severity, where the names differ.
_SEVERITIES = {"NOTSET": "DEFAULT", "WARN": "WARNING", "FATAL": "CRITICAL"}

_LABELS = "logging.googleapis.com/labels"
_TRACE = "logging.googleapis.com/trace"
_SPAN = "logging.googleapis.com/spanId"

#: A W3C traceparent: version, trace, span, flags.
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")


#: Longest message and stack trace, characters: Cloud Logging takes 256 KB for an entry.
_LONGEST_MESSAGE, _LONGEST_TRACE = 16_000, 32_000
#: Longest label, bytes of UTF-8.
_LONGEST_LABEL = 1000

#: What a terminal or a reader of lines interprets, except tabs and line ends.
_CONTROL = re.compile("[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\u2028\\u2029\\ud800-\\udfff]")


def _message(record: logging.LogRecord) -> str:
    try:
        text = record.getMessage()
    except Exception as exc:  # logging would print the record's arguments
        text = f"a line that can't be formatted ({type(exc).__name__}): {record.msg!s:.200}"
    return _bounded(text, _LONGEST_MESSAGE)


def _bounded(text: str, limit: int) -> str:
    """A text that is too long is cut in the middle: a stack trace's last line says what went wrong."""
    if len(text) <= limit:
        return text
    kept = limit // 2
    return f"{text[:kept]} ... {len(text) - 2 * kept} more characters ... {text[-kept:]}"


def _trace_text(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    text = record.exc_text or ""
    if not text and record.exc_info:
        try:
            text = formatter.formatException(record.exc_info)
        except Exception as exc:  # an error whose own text raises
            text = f"a stack trace that can't be formatted ({type(exc).__name__})"
    return _bounded(text, _LONGEST_TRACE)


class LineFormatter(logging.Formatter):
    """Another formatter's text, with all lines but the first indented: no value can begin a line."""

    def __init__(self, inner: logging.Formatter | None) -> None:
        super().__init__()
        self._inner = inner or logging.Formatter()

    def format(self, record: logging.LogRecord) -> str:
        record = copy.copy(record)  # other handlers get the same record
        trace = _trace_text(self._inner, record)
        record.msg, record.args = _one_line(_message(record)), ()
        record.exc_text = _one_line(trace, first="  ") if trace else None
        return self._inner.format(record)


def _one_line(text: str, first: str = "") -> str:
    escaped = _CONTROL.sub(lambda m: m[0].encode("unicode_escape").decode(), text)
    return first + escaped.replace("\n", "\n  ")


class CloudFormatter(logging.Formatter):
    """One line of JSON for each record, in ASCII."""

    def __init__(self, project: str) -> None:
        super().__init__()
        self._project = project

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "severity": _SEVERITIES.get(record.levelname, record.levelname),
            "message": _message(record),
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "logger": record.name,
            "process": record.processName,
        }
        labels = {
            key: safe_text(value, _LONGEST_LABEL)
            for key, value in _labels(record).items()
            if value is not None
        }
        if labels:
            line[_LABELS] = labels
        trace, span = _trace()
        if trace is not None:
            line[_TRACE] = f"projects/{self._project}/traces/{trace}" if self._project else trace
            line[_SPAN] = span
        if record.exc_info or record.exc_text:
            line["stack_trace"] = _trace_text(self, record)
        return json.dumps(line, default=str)


def _labels(record: logging.LogRecord) -> dict[str, Any]:
    task = get_current_task()
    if task is None or task.request.called_directly:
        # The main process has no current task, but Celery names the one that a record is about.
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
    try:
        job = getattr(task, "_running_job", None)
    except OutsideAttempt:
        job = None  # in a process that the job has forked
    if job is not None:
        labels.update(
            tenant=job.record.job.tenant,
            run=job.record.run_id,
            attempt=job.record.attempt,
            fence=job.fence,
        )
    return labels


def _trace() -> tuple[str | None, str | None]:
    """Trace and span: OpenTelemetry's if it is on, else those of the message."""
    otel = sys.modules.get("opentelemetry.trace")
    if otel is not None:
        context = otel.get_current_span().get_span_context()
        if context.is_valid:
            return f"{context.trace_id:032x}", f"{context.span_id:016x}"
    task = get_current_task()
    headers = (task.request.headers if task is not None else None) or {}
    found = _TRACEPARENT.fullmatch(str(headers.get("traceparent")))
    return (found[1], found[2]) if found else (None, None)


#: Celery's loggers that print arguments, results or bodies.
_CONSUMER = "celery.worker.consumer.consumer"
_LOGGERS = (_CONSUMER, "celery.worker.strategy", "celery.app.trace", "celery.pool")

#: Name of Celery's text -> ours, and which of its arguments ours keeps.
_SHORT: dict[str, tuple[str, tuple[int, ...]]] = {
    "UNKNOWN_TASK_ERROR": ("no task is registered as %s: the message is rejected", (0,)),
    "INVALID_TASK_ERROR": ("an invalid task message is rejected: %s", (0,)),
    "MESSAGE_DECODE_ERROR": ("a message's body can't be decoded: %s (%r, %r)", (0, 1, 2)),
    "UNKNOWN_FORMAT": ("a message that is no task is rejected", ()),
}
#: The same for texts that Celery doesn't name, by how they begin.
_BEGINNINGS: dict[str, tuple[str, tuple[int, ...]]] = {
    "TaskPool: Apply": ("TaskPool: Apply %s", (0,)),
    "Couldn't convert ETA": ("Couldn't convert ETA %r to timestamp: %r", (0, 1)),
}
#: Values of Celery's other lines that are not shown, whatever formats an app has set for these lines.
_VALUES = frozenset({"args", "kwargs", "return_value"})
_HIDDEN = "(hidden)"


class WithoutArguments(logging.Filter):
    """Removes arguments, results and message bodies from what Celery logs."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, dict):
            record.args = _without_values(record.args)
        data = getattr(record, "data", None)
        if isinstance(data, dict):
            record.data = _without_values(data)
        short = _short(record.msg)
        if short is not None and isinstance(record.args, tuple):
            args = [
                # A KeyError's text is the task's name.
                public_error(a) if isinstance(a, Exception) and not isinstance(a, KeyError) else a
                for a in record.args
            ]
            record.msg, kept = short
            record.args = tuple(args[i] for i in kept)
            record.exc_info = record.exc_text = None
        return True


class InOneLine(logging.Filter):
    """Logs an error of this package that ends a worker without its stack trace, which helps nobody."""

    def filter(self, record: logging.LogRecord) -> bool:
        args = record.args
        if isinstance(args, tuple) and args and isinstance(args[0], GwiError):
            record.msg, record.args = (
                "this worker ends: %s",
                (safe_text(args[0], _LONGEST_MESSAGE),),
            )
            record.exc_info = record.exc_text = None
        return True


def _without_values(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _HIDDEN if key in _VALUES else value for key, value in facts.items()}


def _short(text: Any) -> tuple[str, tuple[int, ...]] | None:
    if not isinstance(text, str):
        return None
    # If Celery logs such a text, it has loaded the module; a producer may not have.
    consumer = sys.modules.get(_CONSUMER)
    for name, short in _SHORT.items():
        if getattr(consumer, name, None) == text:
            return short
    return next((short for begin, short in _BEGINNINGS.items() if text.startswith(begin)), None)


_without_arguments = WithoutArguments()
_in_one_line = InOneLine()


def wants_json(settings: Settings) -> bool:
    """Whether logs are JSON: by the setting, else with a project and without a terminal."""
    if settings.log_format:
        return settings.log_format == "json"
    return bool(settings.project) and not sys.stderr.isatty()


class _Setup:
    """Connected to Celery's signals; the app that was set up last decides for the process."""

    def __init__(self) -> None:
        self.settings: Settings | None = None

    def __call__(self, logger: logging.Logger, **kwargs: Any) -> None:
        if self.settings is None:
            return
        # Billiard's logger has handlers of its own, and no signal announces them.
        for handler in (*logger.handlers, *get_multiprocessing_logger().handlers):
            if wants_json(self.settings):
                handler.setFormatter(CloudFormatter(self.settings.project))
            elif not isinstance(handler.formatter, LineFormatter):
                handler.setFormatter(LineFormatter(handler.formatter))


_setup = _Setup()
signals.after_setup_logger.connect(_setup, weak=False)
signals.after_setup_task_logger.connect(_setup, weak=False)


def configure(settings: Settings) -> None:
    """Have Celery's logging follow these settings once it sets it up."""
    _setup.settings = settings
    logging.getLogger("celery.worker").addFilter(_in_one_line)
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        if settings.log_arguments:
            logger.removeFilter(_without_arguments)
        else:
            logger.addFilter(_without_arguments)
