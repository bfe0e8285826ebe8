"""Queue and exchange names <-> Pub/Sub's ids, filters and labels. Pure functions.

Every exchange is a topic, and every queue has a topic of its own, on which the default exchange
reaches it. Both topics are named after them, so that a queue and an exchange of one name (as Celery
makes them) share a topic, and the queue needs one subscription and not two. An id is ``prefix`` and the
name, with what Pub/Sub doesn't allow percent-encoded, so that no two names share one; a long name is
a readable beginning and its SHA-256. ``~`` is never part of an encoded name: it separates what follows.

Limits (https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names): an id has 3 to 255 of
``[A-Za-z0-9-_.~+%]`` and starts with a letter, but not with ``goog``. A filter has at most 256 bytes
(https://cloud.google.com/pubsub/docs/subscription-message-filter). A resource has at most 64 labels,
and a label's value at most 63 of ``[a-z0-9_-]``.
"""

from __future__ import annotations

import base64
import hashlib
import re
import zlib
from collections.abc import Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

from gwi_celery.brokers.routing import DIRECT, FANOUT, TOPIC
from gwi_celery.errors import ConfigurationError
from gwi_celery.ids import digest

#: Attributes under which a message travels; filters name them.
EXCHANGE = "exchange"
ROUTING_KEY = "routing_key"
PRIORITY = "priority"

#: Labels that say what a topic or subscription is for.
EXCHANGE_LABEL = "gwi-exchange"
TEMPORARY_LABEL = "gwi-temporary"
#: Who made a temporary one.
MAKER_LABEL = "gwi-maker"
TTL_LABEL = "gwi-message-ttl"
MAX_DELIVERIES_LABEL = "gwi-max-deliveries"
_NAME_LABEL = "gwi-name-"
_KEY_LABEL = "gwi-key-"

_MAX_ENCODED = 180
_READABLE = 60
_MAX_FILTER = 256
_LABEL_VALUE = 63
#: Labels that one text may take. A binding's subscription has two texts; the other labels are left free.
_LABELS_PER_TEXT = 24
#: First character of a compressed text in labels: none of base32hex's.
_COMPRESSED = "z"
#: Labels that an application may set, so that all fit.
MOST_USER_LABELS = 64 - 2 * _LABELS_PER_TEXT - 4
#: Text that can stand in a filter as it is, between quotes.
_PLAIN = re.compile(r"[ !#-\[\]-~]*")


def topic_id(prefix: str, name: str) -> str:
    """Id of an exchange's topic, or of a queue's own topic."""
    return prefix + _encoded(name)


def subscription_id(prefix: str, queue: str) -> str:
    """Id of a queue's own subscription."""
    return prefix + _encoded(queue)


def binding_id(prefix: str, queue: str, exchange: str, routing_key: str) -> str:
    """Id of the subscription by which a queue gets what an exchange sends under a binding key."""
    return f"{subscription_id(prefix, queue)}~b{digest('binding', exchange, routing_key)[:32]}"


def level_id(subscription: str, level: int) -> str:
    """Id of the subscription, beside a queue's own, for its messages of priority ``level`` and above."""
    return f"{subscription}~p{level}"


def temporary_topic_id(prefix: str) -> str:
    """Id of the topic on which the default exchange reaches temporary queues."""
    return f"{prefix}~temporary"


def signs_topic_id(prefix: str) -> str:
    """Id of the topic whose subscriptions are signs: nothing is published to it."""
    return f"{prefix}~signs"


def name_of(prefix: str, id: str, labels: Mapping[str, str]) -> str | None:
    """The name behind an id that :func:`topic_id` made; None if it is unknown."""
    if not id.startswith(prefix):
        return None
    stored = _from_labels(_NAME_LABEL, labels)
    encoded = id.removeprefix(prefix)
    if stored is not None:
        return stored if _encoded(stored) == encoded else None
    if not encoded or "~" in encoded:
        return None
    name = unquote_to_bytes(encoded).decode("utf-8", "surrogatepass")
    return name if _encoded(name) == encoded else None


def name_labels(name: str) -> dict[str, str]:
    """Labels that carry a name too long for its id."""
    return _to_labels(_NAME_LABEL, name) if "~" in _encoded(name) else {}


def key_labels(routing_key: str) -> dict[str, str]:
    return _to_labels(_KEY_LABEL, routing_key)


def key_of(labels: Mapping[str, str]) -> str | None:
    """The binding key that a binding's subscription carries in its labels."""
    return _from_labels(_KEY_LABEL, labels)


def binding_filter(exchange_type: str, key: str) -> str:
    """The closest filter for a binding: it passes all messages that match, and possibly more."""
    # The default exchange's messages for a queue of the exchange's name are on this topic as well.
    sent = f"attributes:{EXCHANGE}"
    if exchange_type == FANOUT:
        return sent
    words = key.split(".")
    if exchange_type == DIRECT or not {"*", "#"} & set(words):
        return _fitting(sent, _equals(ROUTING_KEY, key))
    assert exchange_type == TOPIC
    literal = []
    for word in words:
        if word in ("*", "#"):
            break
        literal.append(word)
    if not literal:
        return sent
    start = ".".join(literal)
    if words[len(literal)] == "#":
        # "a.#" takes "a" itself as well.
        same, below = _equals(ROUTING_KEY, start), _has_prefix(ROUTING_KEY, start + ".")
        return _fitting(sent, f"({same} OR {below})" if same and below else "")
    return _fitting(sent, _has_prefix(ROUTING_KEY, start + "."))


def queue_filter(queue: str) -> str:
    """For a queue's own subscription on the topic that temporary queues share."""
    return _fitting("", _equals(ROUTING_KEY, queue))


def priority_filter(level: int, next_level: int | None) -> str:
    """Messages whose priority is from ``level`` up to below ``next_level``; both 0 to 9."""
    if level > 0:
        return _any_priority(level, next_level or 10)
    # Everything without a higher level's priority belongs to this one: none at all, or a foreign "high".
    others = f"NOT ({_any_priority(next_level or 10, 10)})"
    missing = f"NOT attributes:{PRIORITY} OR {others}"
    return missing if len(missing) <= _MAX_FILTER else others


def _any_priority(start: int, end: int) -> str:
    return " OR ".join(_equals(PRIORITY, str(n)) for n in range(start, end))


def _equals(attribute: str, value: str) -> str:
    return f'attributes.{attribute}="{value}"' if _PLAIN.fullmatch(value) else ""


def _has_prefix(attribute: str, value: str) -> str:
    return f'hasPrefix(attributes.{attribute}, "{value}")' if _PLAIN.fullmatch(value) else ""


def _fitting(sent: str, condition: str) -> str:
    """Both, or as much as the limit allows: messages are checked again on arrival."""
    both = f"{sent} AND {condition}" if sent and condition else sent or condition
    return both if len(both) <= _MAX_FILTER else sent


def _encoded(name: str) -> str:
    raw = name.encode("utf-8", "surrogatepass")
    encoded = quote_from_bytes(raw, safe="+").replace("~", "%7E")
    if len(encoded) <= _MAX_ENCODED:
        return encoded
    readable = re.sub(r"%.?$", "", encoded[:_READABLE])
    return f"{readable}~h{hashlib.sha256(raw).hexdigest()}"


def _to_labels(label: str, text: str) -> dict[str, str]:
    """Raises ConfigurationError for a text that doesn't fit."""
    raw = text.encode("utf-8", "surrogatepass")
    code = _base32(raw)
    if len(code) > _LABEL_VALUE:
        code = min(code, _COMPRESSED + _base32(zlib.compress(raw, 9)), key=len)
    chunks = [code[i : i + _LABEL_VALUE] for i in range(0, len(code), _LABEL_VALUE)] or [""]
    if len(chunks) > _LABELS_PER_TEXT:
        raise ConfigurationError(
            f"the name or binding key {text[:40]!r}... has {len(raw)} bytes, more than Pub/Sub can "
            f"keep of it (about {_LABELS_PER_TEXT * _LABEL_VALUE * 5 // 8}): use a shorter one"
        )
    return {f"{label}{n}": chunk for n, chunk in enumerate(chunks)}


def _from_labels(label: str, labels: Mapping[str, str]) -> str | None:
    chunks: list[str] = []
    while (chunk := labels.get(f"{label}{len(chunks)}")) is not None:
        chunks.append(chunk)
    if not chunks:
        return None
    code = "".join(chunks)
    compressed = code.startswith(_COMPRESSED)
    code = code.removeprefix(_COMPRESSED).upper()
    try:
        raw = base64.b32hexdecode(code + "=" * (-len(code) % 8))
        return (zlib.decompress(raw) if compressed else raw).decode("utf-8", "surrogatepass")
    except (ValueError, zlib.error):
        return None  # a foreign label


def _base32(raw: bytes) -> str:
    return base64.b32hexencode(raw).decode("ascii").rstrip("=").lower()
