"""What a job's record keeps of its call: to find the job, and to repeat the call without its caller."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from celery.exceptions import Retry

from gwi_celery import blobs
from gwi_celery.config import Settings
from gwi_celery.errors import NotSerializable
from gwi_celery.headers import (
    DUE_HEADER,
    KEY_HEADER,
    LABELS_HEADER,
    MAX_RETRIES_HEADER,
    RUN_HEADER,
    TENANT_HEADER,
)
from gwi_celery.reliability.call import Call
from gwi_celery.reliability.ends import End
from gwi_celery.stores.base import AttemptEnd, Origin
from gwi_celery.text import safe_text

#: Headers that belong to the job. All others belong to one message.
_KEPT = (KEY_HEADER, DUE_HEADER, MAX_RETRIES_HEADER, LABELS_HEADER)


def origin_of(request: Any, resolved: Call, settings: Settings) -> Origin:
    """The origin that a record keeps of Celery's ``request``."""
    headers: Mapping[str, Any] = request.headers or {}
    queue = (request.delivery_info or {}).get("routing_key")
    envelope = None
    if settings.keep_calls:
        kept = {name: headers[name] for name in _KEPT if headers.get(name) is not None}
        kept[TENANT_HEADER] = resolved.tenant
        if resolved.run is not None:
            kept[RUN_HEADER] = resolved.run
        call = {
            "args": request.args,
            "kwargs": request.kwargs,
            "headers": kept,
            "queue": queue,
            "priority": (request.properties or {}).get("priority"),
            "link": request.callbacks,
            "link_error": request.errbacks,
            "chain": request.chain,
        }
        with contextlib.suppress(NotSerializable):  # such as an eager call's
            # In Celery's own JSON, so that the same types are read back.
            envelope = blobs.dump(call, what="the call", limit=2**63 - 1)
    return Origin(
        task_id=request.id,
        parent_id=request.parent_id,
        root_id=request.root_id,
        queue=queue,
        labels=headers.get(LABELS_HEADER) or {},
        code_version=settings.effective_code_version,
        envelope=envelope,
    )


def call_of(envelope: bytes) -> dict[str, Any]:
    """What :func:`origin_of` kept."""
    call: dict[str, Any] = blobs.load(envelope)
    return call


def attempt_end(end: End, exc: BaseException) -> AttemptEnd:
    """How an attempt ended, for its record."""
    how, error, retry_at = end.name.lower(), exc, None
    if isinstance(exc, Retry):
        retry_at = _moment(exc.when)
        error = exc.exc or exc
        if exc.exc is None:
            return AttemptEnd(how, retry_at=retry_at)
    elif end in _NO_ERRORS:
        return AttemptEnd(how)
    return AttemptEnd(how, type(error).__name__, safe_text(error), retry_at)


#: Ends without an error of the job.
_NO_ERRORS = (End.SUCCEEDED, End.REPLACED, End.IGNORED, End.STOPPING, End.ENDED, End.REQUEUED)


def _moment(when: Any) -> float | None:
    """Seconds since the epoch, from a Retry's ``when``: a number of seconds, or a time."""
    if isinstance(when, datetime):
        return when.timestamp()
    return time.time() + when if isinstance(when, (int, float)) else None
