"""Our messages <-> Pub/Sub's. Pure functions.

Beside the attributes that the message brings, it carries:

==================  ===============================================================================
``exchange``        absent for the default exchange; the beginning of a long one
``routing_key``     for filters; the beginning of a long one
``priority``        "1" to "9"; absent for 0
``gwi-not-before``  seconds since the epoch before which it is not to be delivered
``gwi-expires``     seconds since the epoch after which it is dropped
``gwi-attempts``    attempts before this copy was published; absent for none
``gwi-more-0`` ...  JSON, in pieces: what Pub/Sub would not take as it is. An object with the
                    whole ``exchange`` and ``routing_key``, and ``attributes``
==================  ===============================================================================

A message without any of them, published by somebody else, is of the default exchange.
Limits: 10 MB a message, 100 attributes, 256 bytes a key, 1,024 bytes a value
(https://cloud.google.com/pubsub/quotas#resource_limits).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.base import OutgoingMessage
from gwi_celery.brokers.pubsub.client import pb
from gwi_celery.brokers.pubsub.naming import EXCHANGE, PRIORITY, ROUTING_KEY
from gwi_celery.errors import TooLarge
from gwi_celery.text import from_json

NOT_BEFORE = "gwi-not-before"
EXPIRES = "gwi-expires"
ATTEMPTS = "gwi-attempts"
ODD = "gwi-more-"

#: Bytes; Pub/Sub refuses a larger publish request, and the emulator hangs on it.
MAX_REQUEST = 10_000_000
#: Bytes left for the rest of the request, mostly the topic's path.
_AROUND = 350
MAX_MESSAGE = MAX_REQUEST - _AROUND
#: The same for a copy of a message that arrived in its own request, to a topic of nearly the same name.
_LEAST_AROUND = 40
_MAX_KEY = 256
_MAX_VALUE = 1024
_MAX_ATTRIBUTES = 100
_MAX_ORDERING_KEY = 1024

_OWN = frozenset({EXCHANGE, ROUTING_KEY, PRIORITY, NOT_BEFORE, EXPIRES, ATTEMPTS})

#: What Pub/Sub's own dead letter policy adds to what it forwards.
FORWARDED_COUNT = "CloudPubSubDeadLetterSourceDeliveryCount"


@dataclass(frozen=True)
class Received:
    """What a message's attributes say."""

    exchange: str
    routing_key: str
    attributes: dict[str, str]
    priority: int
    not_before: float
    expires: float
    attempts: int


def to_pubsub(
    exchange: str,
    routing_key: str,
    message: OutgoingMessage,
    *,
    now: float,
    ordering: bool = False,
    merge: bool = False,
    attempts: int = 0,
) -> Any:
    """The message to publish. Raises TooLarge, with both sizes.

    ``attempts``: those at the message that this is a copy of. ``merge``: the message may be foreign; pack
    attributes over Pub/Sub's limit into one of this package's.
    """
    attributes: dict[str, str] = {}
    odd: dict[str, str] = {}
    more: dict[str, Any] = {}
    for key, value in message.attributes.items():
        own = key in _OWN or key.startswith((ODD, "goog"))
        (odd if own or not _fits(key, value) else attributes)[key] = value
    # With no attribute at all the data could not be empty, so the routing key is always there.
    for key, value in {
        ROUTING_KEY: routing_key,
        **({EXCHANGE: exchange} if exchange else {}),
    }.items():
        attributes[key] = _beginning(value)
        if attributes[key] != value:
            more[key] = value
    if odd:
        more["attributes"] = odd
    if message.priority:
        attributes[PRIORITY] = str(message.priority)
    if message.delay > 0:
        attributes[NOT_BEFORE] = f"{now + message.delay:.3f}"
    if attempts:
        attributes[ATTEMPTS] = str(attempts)
    if message.ttl is not None:
        attributes[EXPIRES] = f"{now + message.delay + message.ttl:.3f}"
    order = ""
    if ordering and "tenant" in attributes:
        order = ordering_key(attributes["tenant"], attributes.get("run", ""))
    attributes.update(_merged(attributes, more) if merge else _pieces(more))
    _check_number(len(attributes))
    made = pb["PubsubMessage"](data=message.data, attributes=attributes, ordering_key=order)
    check_size(made)
    return made


def _merged(attributes: dict[str, str], more: dict[str, Any]) -> dict[str, str]:
    """``more`` in pieces. While there are too many attributes, the shortest are moved into it."""
    shortest = sorted(
        (key for key in attributes if key not in _OWN),
        key=lambda key: -len(key) - len(attributes[key]),
    )
    pieces = _pieces(more)
    while shortest and len(attributes) + len(pieces) > _MAX_ATTRIBUTES:
        key = shortest.pop()
        more.setdefault("attributes", {})[key] = attributes.pop(key)
        pieces = _pieces(more)
    return pieces


def _check_number(attributes: int) -> None:
    if attributes > _MAX_ATTRIBUTES:
        raise TooLarge(
            f"the message needs {attributes} attributes, over Pub/Sub's limit of "
            f"{_MAX_ATTRIBUTES}: use shorter names, and put what is long into the message itself"
        )


def _pieces(more: dict[str, Any]) -> dict[str, str]:
    if not more:
        return {}
    text = json.dumps(more)  # ASCII only
    return {
        f"{ODD}{n // _MAX_VALUE}": text[n : n + _MAX_VALUE] for n in range(0, len(text), _MAX_VALUE)
    }


def as_it_came(message: OutgoingMessage) -> Any | None:
    """A message with its own attributes only, which needs no more room than the original.

    None if one of them can't have been a Pub/Sub attribute.
    """
    attributes = dict(message.attributes)
    few = len(attributes) <= _MAX_ATTRIBUTES
    if not few or not all(_fits(key, value) for key, value in attributes.items()):
        return None
    made = pb["PubsubMessage"](data=message.data, attributes=attributes)
    return made if made.ByteSize() <= MAX_REQUEST - _LEAST_AROUND else None


def check_size(message: Any) -> None:
    size = message.ByteSize()
    if size > MAX_MESSAGE:
        raise TooLarge(
            f"the message, with its request, has {size + _AROUND} bytes, over Pub/Sub's limit of "
            f"{MAX_REQUEST}: keep what is large elsewhere (Cloud Storage, say), and send where it is"
        )


def parse(message: Any) -> Received:
    """Parse a message's attributes. Missing or malformed ones are ignored."""
    attributes = dict(message.attributes)
    more = _more(attributes)
    own = {key: attributes.pop(key) for key in _OWN if key in attributes}
    odd = more.get("attributes")
    priority = own.get(PRIORITY, "")
    return Received(
        exchange=_text(more, EXCHANGE, own),
        routing_key=_text(more, ROUTING_KEY, own),
        attributes={**attributes, **(_texts(odd) if isinstance(odd, dict) else {})},
        priority=int(priority) if priority in _DIGITS else 0,
        not_before=_seconds(own.get(NOT_BEFORE), 0.0),
        expires=_seconds(own.get(EXPIRES), float("inf")),
        attempts=int(own[ATTEMPTS]) if _COUNT.fullmatch(own.get(ATTEMPTS, "")) else 0,
    )


def ordering_key(tenant: str, run: str) -> str:
    """``tenant/run``, or a digest where that is too long or ambiguous."""
    key = f"{tenant}/{run}"
    if "/" in tenant or len(key.encode()) > _MAX_ORDERING_KEY:
        raw = f"{len(tenant)}:{tenant}/{run}".encode()
        return "sha256:" + hashlib.sha256(raw).hexdigest()
    return key


_DIGITS = frozenset("0123456789")
_COUNT = re.compile("[0-9]{1,3}")


def _fits(key: str, value: str) -> bool:
    try:
        return 0 < len(key.encode()) <= _MAX_KEY and len(value.encode()) <= _MAX_VALUE
    except UnicodeEncodeError:
        return False  # a lone surrogate, which JSON can carry and UTF-8 can't


def _beginning(value: str) -> str:
    """As much of it as an attribute takes."""
    sound = re.split("[\ud800-\udfff]", value, maxsplit=1)[0]
    return sound.encode()[:_MAX_VALUE].decode("utf-8", "ignore")


def _more(attributes: dict[str, str]) -> dict[str, Any]:
    """Remove the pieces; returns what they hold."""
    pieces: list[str] = []
    while (piece := attributes.pop(f"{ODD}{len(pieces)}", None)) is not None:
        pieces.append(piece)
    try:
        more = from_json("".join(pieces)) if pieces else {}
    except ValueError:
        return {}
    return more if isinstance(more, dict) else {}


def _text(more: dict[str, Any], key: str, own: dict[str, str]) -> str:
    value = more.get(key)
    return value if isinstance(value, str) else own.get(key, "")


def _texts(odd: dict[Any, Any]) -> dict[str, str]:
    return {key: value for key, value in odd.items() if isinstance(value, str)}


def _seconds(text: str | None, default: float) -> float:
    try:
        seconds = default if text is None else float(text)
    except ValueError:
        return default
    return seconds if math.isfinite(seconds) else default


def timestamp(value: Any) -> float:
    """Seconds since the epoch of a protobuf Timestamp."""
    seconds: float = value.seconds + value.nanos / 1e9
    return seconds
