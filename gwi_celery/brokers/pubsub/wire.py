"""Our messages <-> Pub/Sub's. Pure functions.

Beside the attributes that the message brings, it carries:

==================  ===============================================================================
``exchange``        absent for the default exchange
``routing_key``
``priority``        "1" to "9"; absent for 0
``gwi-not-before``  seconds since the epoch before which it is not to be delivered
``gwi-expires``     seconds since the epoch after which it is dropped
``gwi-more-0`` ...  JSON, in pieces: attributes that Pub/Sub would not take as they are
==================  ===============================================================================

A message without any of them, published by somebody else, is of the default exchange.
Limits: 10 MB a message, 100 attributes, 256 bytes a key, 1,024 bytes a value
(https://cloud.google.com/pubsub/quotas#resource_limits).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.naming import EXCHANGE, PRIORITY, ROUTING_KEY
from gwi_celery.errors import TooLarge

NOT_BEFORE = "gwi-not-before"
EXPIRES = "gwi-expires"
ODD = "gwi-more-"

#: Bytes; Pub/Sub refuses a larger publish request, and the emulator hangs on it.
MAX_MESSAGE = 10_000_000
_MAX_KEY = 256
_MAX_VALUE = 1024
_MAX_ATTRIBUTES = 100

_OWN = frozenset({EXCHANGE, ROUTING_KEY, PRIORITY, NOT_BEFORE, EXPIRES})

#: What Pub/Sub's own dead letter policy adds to what it forwards.
FORWARDED_FROM = "CloudPubSubDeadLetterSourceSubscription"
FORWARDED_COUNT = "CloudPubSubDeadLetterSourceDeliveryCount"


@dataclass(frozen=True)
class Received:
    """What a message says about itself."""

    exchange: str
    routing_key: str
    attributes: dict[str, str]
    priority: int
    not_before: float
    expires: float


def to_pubsub(
    exchange: str, routing_key: str, message: OutgoingMessage, *, now: float, ordering: bool = False
) -> Any:
    """The message to publish. Raises TooLarge, with both sizes."""
    attributes: dict[str, str] = {}
    odd: dict[str, str] = {}
    for key, value in message.attributes.items():
        own = key in _OWN or key.startswith((ODD, "goog"))
        (odd if own or not _fits(key, value) else attributes)[key] = value
    address = {ROUTING_KEY: routing_key, EXCHANGE: exchange}
    for key, value in address.items():
        if value or key == ROUTING_KEY:  # without any attribute it may not be empty
            (attributes if _fits(key, value) else odd)[key] = value
    if message.priority:
        attributes[PRIORITY] = str(message.priority)
    if message.delay > 0:
        attributes[NOT_BEFORE] = f"{now + message.delay:.3f}"
    if message.ttl is not None:
        attributes[EXPIRES] = f"{now + message.delay + message.ttl:.3f}"
    if odd:
        text = json.dumps(odd)  # ASCII only
        for n in range(0, len(text), _MAX_VALUE):
            attributes[f"{ODD}{n // _MAX_VALUE}"] = text[n : n + _MAX_VALUE]
    if len(attributes) > _MAX_ATTRIBUTES:
        raise TooLarge(
            f"the message needs {len(attributes)} attributes, over Pub/Sub's limit of "
            f"{_MAX_ATTRIBUTES}: use shorter names, and put what is long into the message itself"
        )
    order = ""
    if ordering and "tenant" in attributes:
        order = f"{attributes['tenant']}/{attributes.get('run', '')}"
    made = pb["PubsubMessage"](data=message.data, attributes=attributes, ordering_key=order)
    check_size(made)
    return made


def check_size(message: Any) -> None:
    size = message.ByteSize()
    if size > MAX_MESSAGE:
        raise TooLarge(
            f"the message has {size} bytes, over Pub/Sub's limit of {MAX_MESSAGE}: keep what is "
            "large elsewhere (Cloud Storage, say), and send where it is"
        )


def parse(message: Any) -> Received:
    """What a message says. One that says nothing, or nonsense, is a plain one."""
    attributes = dict(message.attributes)
    odd = _odd(attributes)
    own = {key: attributes.pop(key) for key in _OWN if key in attributes}
    for key in (EXCHANGE, ROUTING_KEY):
        if key in odd:
            own.setdefault(key, odd.pop(key))
    priority = own.get(PRIORITY, "")
    return Received(
        exchange=own.get(EXCHANGE, ""),
        routing_key=own.get(ROUTING_KEY, ""),
        attributes={**attributes, **odd},
        priority=int(priority) if priority in _DIGITS else 0,
        not_before=_seconds(own.get(NOT_BEFORE), 0.0),
        expires=_seconds(own.get(EXPIRES), float("inf")),
    )


_DIGITS = frozenset("0123456789")


def copy(message: Any, **changes: str | None) -> Any:
    """The same to publish again, with attributes changed, or taken away (None)."""
    made = pb["PubsubMessage"](
        data=message.data, attributes=message.attributes, ordering_key=message.ordering_key
    )
    for key, value in changes.items():
        made.attributes.pop(key, None)
        if value is not None:
            made.attributes[key] = value
    return made


def _fits(key: str, value: str) -> bool:
    try:
        return 0 < len(key.encode()) <= _MAX_KEY and len(value.encode()) <= _MAX_VALUE
    except UnicodeEncodeError:
        return False  # a lone surrogate, which JSON can carry and UTF-8 can't


def _odd(attributes: dict[str, str]) -> dict[str, str]:
    """Take the pieces out, and give what they hold."""
    pieces: list[str] = []
    while (piece := attributes.pop(f"{ODD}{len(pieces)}", None)) is not None:
        pieces.append(piece)
    try:
        odd = json.loads("".join(pieces)) if pieces else {}
    except ValueError:
        return {}
    return odd if isinstance(odd, dict) else {}


def _seconds(text: str | None, default: float) -> float:
    try:
        return default if text is None else float(text)
    except ValueError:
        return default


def timestamp(value: Any) -> float:
    """Seconds since the epoch of a protobuf Timestamp."""
    seconds: float = value.seconds + value.nanos / 1e9
    return seconds
