"""Celery's consumer, which survives any message.

Celery's own takes for granted that a message which names a task is otherwise as Celery makes it. One
without an id, or with a body of another shape, ends the whole worker, and the next one it is delivered
to. Here such a message is rejected, and so kept in the dead letter, with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

from gwi_celery.reliability import tracer

logger = logging.getLogger(__name__)


class Consumer(consumer.Consumer):
    """In force by ``app.conf.worker_consumer``, which ``setup()`` sets."""

    def update_strategies(self) -> None:
        super().update_strategies()
        tracer.install(self.app)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)

        def on_task_received(message: Any) -> Any:
            reason = oddity(message)
            if reason is None:
                return handle(message)
            logger.error("message %s is no task: %s", message.delivery_tag, reason)
            message.death_reason = f"not a Celery task: {reason}"
            return message.reject_log_error(logger, self.connection_errors)

        return on_task_received


def oddity(message: Any) -> str | None:
    """What is wrong with a message that names a task; None if it is as Celery makes it.

    Whatever Celery itself answers well (no task named, an unknown one, a body that can't be decoded,
    an impossible ETA) is none of its business.
    """
    headers = message.headers
    try:
        payload = message.payload
    except Exception:
        return None  # Celery says so itself
    if "task" in headers:
        if not isinstance(headers["task"], str):
            return "the task that it names is no text"
        return _id(headers) or _options(headers) or _embedded(payload)
    if isinstance(payload, dict) and "task" in payload:  # protocol 1
        if not isinstance(payload["task"], str):
            return "the task that it names is no text"
        return _id(payload) or _options(payload) or _arguments(payload)
    return None


def _id(headers: dict[str, Any]) -> str | None:
    id = headers.get("id")
    return None if isinstance(id, str) and id else "it has no id"


def _options(headers: dict[str, Any]) -> str | None:
    limits = headers.get("timelimit")
    if limits and not (
        isinstance(limits, (list, tuple))
        and len(limits) == 2
        and all(limit is None or _number(limit) for limit in limits)
    ):
        return "its time limits are not two numbers"
    retries = headers.get("retries")
    if retries is not None and not _number(retries):
        return "its retries are no number"
    stamped = headers.get("stamped_headers")
    if stamped and not (
        isinstance(stamped, (list, tuple)) and isinstance(headers.get("stamps"), dict)
    ):
        return "its stamps are not as Celery makes them"
    return None


def _embedded(payload: Any) -> str | None:
    """Of protocol 2: arguments, keyword arguments, callbacks. Hybrids carry protocol 1's."""
    if isinstance(payload, dict):
        return _arguments(payload) if "args" in payload else "its body is not a list of three"
    if not isinstance(payload, (list, tuple)) or len(payload) != 3:
        return "its body is not a list of three"
    args, kwargs, embed = payload
    if not isinstance(args, (list, tuple)) or not isinstance(kwargs, dict):
        return "its arguments are not a list and an object"
    return None if embed is None or isinstance(embed, dict) else "its callbacks are not an object"


def _arguments(payload: dict[str, Any]) -> str | None:
    good = isinstance(payload.get("args", []), (list, tuple))
    good = good and isinstance(payload.get("kwargs", {}), dict)
    return None if good else "its arguments are not a list and an object"


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
