"""The plain job format: a call as JSON that any language can write. Pure functions.

::

    {"id": "...", "type": "shop.invoice", "tenantId": "acme", "runId": "r1", "payload": {...},
     "metadata": {"maxRetries": 5, "retryCount": 0, "priority": 3, "deadline": "2026-11-24T12:00:00Z"}}

It is converted to Celery's own message on arrival, so that all later code knows one format only.
docs/wire.md describes the fields for publishers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery.utils.time import maybe_iso8601
from kombu.utils import json

from gwi_celery.errors import MalformedMessage
from gwi_celery.headers import (
    DEADLINE_HEADER,
    MAX_RETRIES_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)

#: Kombu's range of priorities.
_LOWEST, _HIGHEST = 0, 9
#: Most retries: a backoff computes 2 ** retries.
_MOST_RETRIES = 1000

#: Keys that distinguish Celery's message from a plain job.
_CELERY_KEYS = frozenset({"body", "headers", "properties"})


def is_job(raw: Any) -> bool:
    """Whether this JSON is a plain job, possibly an invalid one."""
    return isinstance(raw, Mapping) and "type" in raw and not _CELERY_KEYS & raw.keys()


def to_message(raw: Mapping[str, Any], queue: str) -> dict[str, Any]:
    """The Celery message of a plain job, in the form that the envelope has on the wire.

    Args:
        raw: The job, as parsed from JSON. Unknown fields are ignored.
        queue: The queue that it came from, and that its retries go to.

    Raises MalformedMessage, which names the field and what is wrong with it.
    """
    task = _text(raw, "type", needed=True)
    task_id = _text(raw, "id", needed=True)
    payload = _object(raw, "payload")
    metadata = _object(raw, "metadata")
    headers: dict[str, Any] = {
        "lang": "py",
        "task": task,
        "id": task_id,
        "root_id": task_id,
        "parent_id": None,
        "group": None,
        "shadow": None,
        "eta": None,
        "expires": None,
        "timelimit": [None, None],
        "retries": _count(metadata, "retryCount") or 0,
        "origin": "job",
    }
    optional = {
        TENANT_HEADER: _text(raw, "tenantId"),
        RUN_HEADER: _text(raw, "runId"),
        DEADLINE_HEADER: _deadline(metadata.get("deadline")),
        MAX_RETRIES_HEADER: _count(metadata, "maxRetries"),
    }
    headers.update({name: value for name, value in optional.items() if value is not None})
    callbacks = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    return {
        "body": json.dumps([[], payload, callbacks]),
        "body_encoding": "utf-8",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            **_priority(metadata.get("priority")),
        },
    }


def _text(raw: Mapping[str, Any], name: str, *, needed: bool = False) -> str | None:
    value = raw.get(name)
    if value is None and not needed:
        return None
    if not isinstance(value, str) or not value.strip():
        raise MalformedMessage(f"a plain job whose {name!r} is {_shown(value)}: send a text")
    return value


def _object(raw: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = raw.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise MalformedMessage(f"a plain job whose {name!r} is {_shown(value)}: send an object")
    return value


def _count(metadata: Mapping[str, Any], name: str) -> int | None:
    value = metadata.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= _MOST_RETRIES:
        raise MalformedMessage(
            f"a plain job whose metadata.{name} is {_shown(value)}: send a whole number from 0 to "
            f"{_MOST_RETRIES}"
        )
    return value


def _priority(value: Any) -> dict[str, int]:
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int):
        raise MalformedMessage(
            f"a plain job whose metadata.priority is {_shown(value)}: send a whole number from "
            f"{_LOWEST} to {_HIGHEST}, higher first"
        )
    return {"priority": min(max(value, _LOWEST), _HIGHEST)}


def _deadline(value: Any) -> float | None:
    """Seconds since the epoch, from milliseconds since the epoch or an ISO 8601 time with its zone."""
    if value is None:
        return None
    try:
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            seconds = float(value) / 1000
            if math.isfinite(seconds):
                return seconds
        elif isinstance(value, str):
            when = maybe_iso8601(value)
            if isinstance(when, datetime) and when.tzinfo is not None:
                return when.timestamp()
    except (ValueError, OverflowError):
        pass
    raise MalformedMessage(
        f"a plain job whose metadata.deadline is {_shown(value)}: send milliseconds since the epoch, "
        "or an ISO 8601 time with its zone"
    )


def _shown(value: Any) -> str:
    """A value in a reason: a number as it is, and anything else by its kind only."""
    if value is None:
        return "missing"
    if isinstance(value, str):
        return "an unusable text" if value.strip() else "empty"
    if isinstance(value, (int, float)):
        return f"{value!r:.40}"
    return f"of type {type(value).__name__}"
