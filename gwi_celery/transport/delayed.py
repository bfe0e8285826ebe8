"""Delayed messages: making one due now, and finding the job that it asks for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from kombu.serialization import prepare_accept_content

from gwi_celery.authority import SIGNATURE, Authority
from gwi_celery.brokers.base import Delivery
from gwi_celery.errors import NotAllowed, StoreError
from gwi_celery.stores.values import JobRef
from gwi_celery.text import from_json
from gwi_celery.transport import depth, handover


def due_now(delivery: Delivery, authority: Authority | None) -> Delivery:
    """The message without its ETA, which would make a worker delay it once more.

    It is signed again if it was signed. A message that no worker would accept stays as it is.
    Raises StoreError.
    """
    try:
        signed = authority is not None and authority.admit(delivery)
    except NotAllowed:
        return delivery
    data = _without_eta(delivery.data)
    if data is None:
        return delivery
    attributes = {k: v for k, v in delivery.attributes.items() if k != SIGNATURE}
    signature = authority.sign(data, delivery.queue) if authority is not None and signed else None
    if signature is not None:
        attributes[SIGNATURE] = signature
    return replace(delivery, data=data, attributes=attributes)


def _without_eta(data: bytes) -> bytes | None:
    """The data without the message's ETA; None if it has none."""
    if depth.too_deep(data):
        return None
    try:
        message = from_json(data)
    except ValueError:
        return None
    headers = message.get("headers") if isinstance(message, dict) else None
    if not isinstance(headers, Mapping) or headers.get("eta") is None:
        return None
    return json.dumps({**message, "headers": {**headers, "eta": None}}).encode()


def job_of(app: Any, channel: Any, delivery: Delivery) -> JobRef | None:
    """The job that the message of a reliable task asks for; None for any other message.

    Args:
        channel: A channel of one of the app's connections.

    Raises StoreError.
    """
    try:
        message = handover.decode(delivery, channel)
        message.accept = prepare_accept_content(app.conf.accept_content)
        task = app.tasks.get(message.headers.get("task"))
        if not hasattr(task, "resolve_call"):
            return None
        args, kwargs = message.payload[:2]
        call = task.resolve_call(args, kwargs, message.headers, message.headers["id"])
    except StoreError:
        raise
    except Exception:  # it can't be decoded, or has no tenant: no worker would run it
        return None
    job: JobRef = call.job
    return job
