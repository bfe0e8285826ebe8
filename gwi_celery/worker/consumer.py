"""Celery's consumer, made to survive any message.

Celery's own assumes that a message which names a task is otherwise well-formed. A message without an id,
or with a body of another shape, ends the worker, and then the next worker that it is redelivered to.
Here such a message is rejected, and so dead-lettered with the reason.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

from celery.exceptions import WorkerShutdown
from celery.utils.time import maybe_iso8601, maybe_make_aware
from celery.worker import consumer

from gwi_celery.errors import ConfigurationError
from gwi_celery.headers import RUN_HEADER, TENANT_HEADER
from gwi_celery.reliability import fields
from gwi_celery.text import safe_text
from gwi_celery.transport.death import Death
from gwi_celery.worker import controls, early, pools, tracer
from gwi_celery.worker.guard import guarded
from gwi_celery.worker.policy import Policy

logger = logging.getLogger(__name__)

#: Longest wait for an ETA, seconds, in a worker's memory: clocks may differ by as much.
_HELD_AT_MOST = 5.0


class Consumer(consumer.Consumer):
    """Configured as ``app.conf.worker_consumer`` by ``setup()``."""

    def start(self) -> None:
        """Celery's own, except that a ConfigurationError ends the worker without a traceback."""
        pools.adapt(self.pool, self.hub)
        try:
            super().start()
        except ConfigurationError as exc:
            logger.critical("this worker can't go on: %s", exc)
            raise WorkerShutdown(exc.exit_code) from exc

    def connection_for_read(self, heartbeat: Any = None) -> Any:
        """Celery's own, also for gossip and events."""
        connection = super().connection_for_read(heartbeat=heartbeat)
        connection.transport.serves_worker = True
        return connection

    def update_strategies(self) -> None:
        for task in self.app.tasks.values():
            task.Request = guarded(task.Request)
        super().update_strategies()
        tracer.install(self.app)
        early.install()
        controls.install()

    def on_unknown_task(self, body: Any, message: Any, exc: Any) -> Any:
        """Celery's own; also records the task and its tenant for the dead letter."""
        name, kwargs = _named(message)
        message.death_reason = (
            f"no task is registered as {name!r}: start the worker with the module that defines it "
            "(celery -A, or app.conf.include), then redrive the message"
        )
        message.death = Death("unregistered")
        for header, argument in ((TENANT_HEADER, "tenant_id"), (RUN_HEADER, "run_id")):
            if isinstance(kwargs.get(argument), str):
                message.headers.setdefault(header, kwargs[argument])
        return super().on_unknown_task(body, message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Any) -> Any:
        message.death_reason = f"not a Celery task: {safe_text(exc, 500)}"
        message.death = Death("malformed")
        return super().on_invalid_task(body, message, exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], Any]:
        handle = super().create_task_handler(*args, **kwargs)
        policy = Policy(self.app)

        def on_task_received(message: Any) -> Any:
            reason = why_malformed(message)
            death = Death("malformed" if reason is not None else "not-allowed")
            if reason is not None:
                reason = f"not a Celery task: {reason}"
            elif _is_task(message):
                reason = policy.refusal(message, message.payload)
            if reason is None:
                wait = _seconds_to_wait(message, self.app)
                if wait > _HELD_AT_MOST and message.postpone(wait):
                    return None
                return handle(message)
            logger.error("message %s is not run: %s", message.delivery_tag, reason)
            message.death_reason, message.death = reason, death
            return message.reject_log_error(logger, self.connection_errors)

        return on_task_received


def _seconds_to_wait(message: Any, app: Any) -> float:
    """Seconds until the message's ETA; 0 if it has none or can't be postponed.

    The broker itself waits for an ETA, unless another publisher set it or it has no time zone.
    """
    eta = message.headers.get("eta")
    if not isinstance(eta, str) or not hasattr(message, "postpone"):
        return 0.0
    when = maybe_make_aware(maybe_iso8601(eta), app.timezone)
    return float((when - datetime.now(timezone.utc)).total_seconds())


def _named(message: Any) -> tuple[Any, dict[str, Any]]:
    """The task's name and, if readable, its keyword arguments."""
    try:
        payload = message.payload
    except Exception:  # the dead letter's reason says that it can't be decoded
        payload = None
    fields = payload if isinstance(payload, dict) else {}
    if isinstance(payload, (list, tuple)) and len(payload) > 1:
        fields = {"kwargs": payload[1]}
    kwargs = fields.get("kwargs")
    name = message.headers.get("task", fields.get("task"))
    return name, kwargs if isinstance(kwargs, dict) else {}


def why_malformed(message: Any) -> str | None:
    """What is wrong with a message that names a task; None if it is well-formed.

    What Celery itself handles well (no task, an unknown one, an undecodable body) is left to it.
    """
    headers = message.headers
    if "task" in headers:  # checked before the body, which may be undecodable
        wrong = (
            _needed(headers)
            or fields.wrong(headers, fields.HEADERS, "header")
            or _properties(message)
        )
        if wrong is not None:
            return wrong
    try:
        payload = message.payload
    except Exception:
        return None  # left to Celery
    if "task" in headers:
        return _embedded(payload)
    if isinstance(payload, dict) and "task" in payload:  # protocol 1
        return (
            _needed(payload)
            or fields.wrong(payload, fields.HEADERS, "field")
            or fields.wrong(headers, fields.HEADERS, "header")
            or _properties(message)
            or _arguments(payload)
        )
    return None


def _is_task(message: Any) -> bool:
    """Whether a well-formed message names a task, so that the policy applies to it."""
    try:
        payload = message.payload
    except Exception:
        return False  # left to Celery
    return "task" in message.headers or (isinstance(payload, dict) and "task" in payload)


def _needed(headers: dict[str, Any]) -> str | None:
    for name in ("task", "id"):
        if headers.get(name) is None:
            return f"it has no {name}"
    return None


def _properties(message: Any) -> str | None:
    return fields.wrong(message.properties, fields.PROPERTIES, "property") or fields.wrong(
        message.delivery_info, fields.DELIVERY_INFO, "delivery_info"
    )


def _embedded(payload: Any) -> str | None:
    """What is wrong with a protocol 2 body: arguments, keyword arguments, callbacks.

    A hybrid message has protocol 2's headers and protocol 1's body.
    """
    if isinstance(payload, dict):
        if "args" not in payload:
            return "its body is not a list of three"
        # Celery reads the other fields from this body, too.
        return fields.wrong(payload, fields.HEADERS, "field") or _arguments(payload)
    if not isinstance(payload, (list, tuple)) or len(payload) != 3:
        return "its body is not a list of three"
    args, kwargs, embed = payload
    if embed is not None and not isinstance(embed, dict):
        return "its callbacks are not an object"
    return _arguments({"args": args, "kwargs": kwargs, **(embed or {})})


def _arguments(payload: dict[str, Any]) -> str | None:
    good = isinstance(payload.get("args", []), (list, tuple))
    good = good and isinstance(payload.get("kwargs", {}), dict)
    if not good:
        return "its arguments are not a list and an object"
    return fields.wrong(payload, fields.CALLBACKS, "field")
