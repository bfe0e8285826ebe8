"""Pub/Sub's limits on names, labels, attributes and sizes, as
https://cloud.google.com/pubsub/quotas#resource_limits and
https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names state them."""

from __future__ import annotations

import re
from typing import Any

from gwi_celery.testing.twin.filters import FilterError, parse

#: Bytes of a publish request, and of a request with ack ids.
MAX_PUBLISH, MAX_ACK_REQUEST = 10_000_000, 524_288
MAX_MESSAGES = 1000
MAX_ATTRIBUTES, MAX_KEY, MAX_VALUE, MAX_ORDERING_KEY = 100, 256, 1024, 1024
MAX_LABELS = 64
_DAY = 86_400

_NAME = re.compile(
    r"projects/[^/]+/(?:topics|subscriptions|snapshots)/(?!goog)[A-Za-z][\w.~+%-]{2,254}"
)
_LABEL_KEY = re.compile(r"[a-z\u00df-\U0010ffff][\w-]{0,62}")
_LABEL_VALUE = re.compile(r"[\w-]{0,63}")


class Refused(Exception):
    """A request that is answered with INVALID_ARGUMENT, or with another status."""

    #: gRPC's trailing metadata, with the error's details.
    trailing: tuple[tuple[str, bytes], ...] = ()

    def __init__(self, text: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(text)
        self.status = status


def name(path: str) -> None:
    if not _NAME.fullmatch(path):
        raise Refused(f"Invalid resource name given (name={path}).")


def labels(found: Any) -> None:
    if len(found) > MAX_LABELS:
        raise Refused(f"There are {len(found)} labels: at most {MAX_LABELS}.")
    for key, value in found.items():
        sound = _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)
        if not sound or (key + value).lower() != key + value:
            raise Refused(f"The label {key}={value} is invalid.")


def subscription(wanted: Any) -> None:
    if wanted.ack_deadline_seconds and not 10 <= wanted.ack_deadline_seconds <= 600:
        raise Refused("ack_deadline_seconds: 10 to 600.")
    retention = wanted.message_retention_duration.seconds or 7 * _DAY
    if not 600 <= retention <= 31 * _DAY:
        raise Refused("message_retention_duration: 10 minutes to 31 days.")
    ttl = wanted.expiration_policy.ttl.seconds
    if ttl and (ttl < _DAY or ttl < retention):
        raise Refused("expiration_policy.ttl: a day at least, and no less than the retention.")
    policy = wanted.dead_letter_policy
    attempts = policy.max_delivery_attempts or 5
    if policy.dead_letter_topic and not 5 <= attempts <= 100:
        raise Refused("max_delivery_attempts: 5 to 100.")
    if wanted.HasField("retry_policy"):
        shortest, longest = wanted.retry_policy.minimum_backoff, wanted.retry_policy.maximum_backoff
        if max(shortest.seconds, longest.seconds) > 600:
            raise Refused("retry_policy: 0 to 600 seconds.")
    if wanted.enable_exactly_once_delivery and wanted.push_config.push_endpoint:
        raise Refused("Exactly-once delivery is for pull subscriptions.")
    try:
        parse(wanted.filter)
    except FilterError as exc:
        raise Refused(f"Invalid filter: {exc}") from exc


def publish(request: Any) -> None:
    if not request.messages:
        raise Refused("The request has no messages.")
    if len(request.messages) > MAX_MESSAGES:
        raise Refused(f"The request has more than {MAX_MESSAGES} messages.")
    if request.ByteSize() > MAX_PUBLISH:
        raise Refused(f"Request payload size exceeds the limit: {MAX_PUBLISH} bytes.")
    for message in request.messages:
        if not message.data and not message.attributes:
            raise Refused("Some messages in the batch are invalid: neither data nor attributes.")
        if len(message.attributes) > MAX_ATTRIBUTES:
            raise Refused(f"A message has more than {MAX_ATTRIBUTES} attributes.")
        if len(message.ordering_key.encode()) > MAX_ORDERING_KEY:
            raise Refused(f"An ordering key has more than {MAX_ORDERING_KEY} bytes.")
        for key, value in message.attributes.items():
            if not 0 < len(key.encode()) <= MAX_KEY or len(value.encode()) > MAX_VALUE:
                raise Refused(f"The attribute {key[:64]!r} is too long.")
            if key.startswith("goog"):
                raise Refused(f"The attribute {key[:64]!r} begins with goog.")


def one_ordering_key(request: Any) -> None:
    if len({message.ordering_key for message in request.messages}) > 1:
        raise Refused(
            "In a single publish request, all messages must have no ordering key or they must all "
            "have the same ordering key.",
            "FAILED_PRECONDITION",
        )


def ack_request(request: Any) -> None:
    if request.ByteSize() > MAX_ACK_REQUEST:
        raise Refused(f"Request payload size exceeds the limit: {MAX_ACK_REQUEST} bytes.")
