"""A push request's body -> the delivery it carries. Pure functions.

Pub/Sub sends a message wrapped in JSON or, if the subscription says so, as it is, with its metadata in
headers. Both become the :class:`Delivery` that a pull worker would get. Pub/Sub has no delayed delivery:
our messages say when they may run, and arrive before that.
"""

from __future__ import annotations

import base64
import binascii
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

from celery.utils.time import maybe_iso8601

from gwi_celery.brokers.base import Delivery
from gwi_celery.errors import MalformedMessage
from gwi_celery.text import from_json
from gwi_celery.transport import budget
from gwi_celery.transport.depth import reason as depth_reason
from gwi_celery.transport.depth import too_deep

#: Prefix of the headers of an unwrapped message.
_META = "x-goog-pubsub-"
#: Prefix of this package's attributes; an unwrapped message has them as headers.
_OURS = "gwi-"
#: Marks a message of our own transport.
_MARKS = ("task", "task_id")


@dataclass(frozen=True)
class Pushed:
    """A message that was pushed, and when it may run."""

    delivery: Delivery
    #: Seconds since the epoch before which it is not to run.
    not_before: float = 0.0
    #: Seconds since the epoch after which it is dropped.
    expires: float = math.inf


class NotAMessage(MalformedMessage):
    """What was pushed can't be a message. ``delivery`` holds it unchanged, for the dead letter."""

    def __init__(self, reason: str, delivery: Delivery) -> None:
        super().__init__(reason)
        self.delivery = delivery


def parse(
    body: bytes,
    headers: Mapping[str, str],
    *,
    queue: str,
    max_depth: int,
    max_decoded: int,
) -> Pushed:
    """What a push request carries.

    Args:
        body: The request's body.
        headers: Its headers, by lower-case name.
        queue: The queue that the message belongs to.
        max_depth: Deepest nesting of JSON that is accepted.
        max_decoded: Bytes of memory that it may take once it is parsed.

    Raises NotAMessage.
    """

    def unwrapped() -> Delivery:
        return _delivery(body, _unwrapped_attributes(headers), queue, _meta(headers))

    # A wrapped message is checked once more by itself, with its copies.
    _check(body, max_depth, max_decoded, unwrapped, copies=0)
    raw = _json(body)
    if isinstance(raw, dict) and isinstance(raw.get("message"), dict) and "type" not in raw:
        return _wrapped(raw, body, queue, max_depth, max_decoded)
    return _when(unwrapped())


def _check(
    data: bytes,
    max_depth: int,
    max_decoded: int,
    kept: Callable[[], Delivery],
    copies: int = budget.COPIES,
) -> None:
    """Raise NotAMessage for JSON that is not to be parsed."""
    try:
        budget.check(data, max_decoded, "it", copies=copies)
    except MalformedMessage as exc:
        raise NotAMessage(str(exc), kept()) from exc
    if too_deep(data, max_depth):
        raise NotAMessage(depth_reason(max_depth), kept())


def _wrapped(
    raw: dict[str, Any], body: bytes, queue: str, max_depth: int, max_decoded: int
) -> Pushed:
    message = raw["message"]
    attributes = message.get("attributes") or {}
    as_it_came = _delivery(body, {}, queue, {})
    if not isinstance(attributes, dict) or not all(
        isinstance(value, str) for value in attributes.values()
    ):
        raise NotAMessage("its attributes are not texts", as_it_came)
    try:
        data = base64.b64decode(message.get("data") or "", validate=True)
    except (TypeError, ValueError, binascii.Error) as exc:
        raise NotAMessage("its data is not base64", as_it_came) from exc
    meta = {
        "message-id": message.get("messageId") or message.get("message_id"),
        "publish-time": message.get("publishTime") or message.get("publish_time"),
        "delivery-attempt": raw.get("deliveryAttempt"),
    }
    delivery = _delivery(data, attributes, queue, meta)
    _check(data, max_depth, max_decoded, lambda: delivery)
    return _when(delivery)


def _when(delivery: Delivery) -> Pushed:
    """Read the attributes that our own Pub/Sub transport adds."""
    from gwi_celery.brokers.pubsub import wire

    parsed = wire.parse(SimpleNamespace(attributes=delivery.attributes))
    delivery = replace(delivery, attributes=parsed.attributes, priority=parsed.priority)
    return Pushed(delivery, parsed.not_before, parsed.expires)


def _delivery(
    data: bytes, attributes: Mapping[str, str], queue: str, meta: Mapping[str, Any]
) -> Delivery:
    message_id = meta.get("message-id")
    return Delivery(
        queue=queue,
        ack_id=uuid4().hex,
        message_id=str(message_id) if message_id else uuid4().hex,
        data=data,
        attributes=attributes,
        deliveries=_count(meta.get("delivery-attempt")),
        published_at=_seconds(meta.get("publish-time")),
        priority=0,
        lease_seconds=0.0,
    )


def _meta(headers: Mapping[str, str]) -> dict[str, str]:
    return {k.removeprefix(_META): v for k, v in headers.items() if k.startswith(_META)}


def _unwrapped_attributes(headers: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in headers.items() if k.startswith(_OURS) or k in _MARKS}


def _json(data: bytes) -> Any:
    """The parsed JSON; None if it isn't JSON, and so no push envelope."""
    try:
        # Not the bytes: these could be UTF-16, in which the depth was not checked.
        return from_json(data.decode())
    except ValueError:
        return None


def _count(value: Any) -> int:
    try:
        return max(int(value), 1)
    except (TypeError, ValueError, OverflowError):
        return 1


def _seconds(value: Any) -> float:
    try:
        when = maybe_iso8601(value) if isinstance(value, str) else None
        return time.time() if when is None else float(when.timestamp())
    except (ValueError, OverflowError):
        return time.time()
