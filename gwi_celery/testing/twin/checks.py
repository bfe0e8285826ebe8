"""What Pub/Sub refuses: https://cloud.google.com/pubsub/quotas#resource_limits has the limits, and
https://cloud.google.com/pubsub/docs/pubsub-basics#resource_names the form of names.

What no page of Google's states was recorded from the service by https://github.com/t-k/fireemu.
"""

from __future__ import annotations

import importlib.util
import re
from typing import Any
from urllib.parse import urlsplit

from gwi_celery.testing.twin.behaviour import Behaviour
from gwi_celery.testing.twin.filters import FilterError, parse

#: Bytes of a publish request, and of a request with ack ids.
MAX_PUBLISH, MAX_ACK_REQUEST = 10_000_000, 524_288
MAX_MESSAGES = 1000
MAX_ATTRIBUTES, MAX_KEY, MAX_VALUE, MAX_ORDERING_KEY = 100, 256, 1024, 1024
MAX_LABELS = 64
#: Topics of a project, and its subscriptions; also subscriptions of a topic.
MAX_RESOURCES = 10_000
MAX_PAGE = 1000
_DAY = 86_400
#: Seconds: the shortest and longest retention, and the default.
_RETENTION, _DEFAULT_RETENTION = (600, 31 * _DAY), 7 * _DAY
#: Seconds until a subscription that nobody uses expires, by default.
_EXPIRATION = 31 * _DAY
#: The shortest and longest pause of a retry policy by default, seconds. The second is also the limit.
_BACKOFF = (10, 600)
#: Fewest and most deliveries before the dead letter; the first is the default.
_DELIVERIES = (5, 100)
#: google.pubsub.v1.Topic.State, and Subscription.State.
_ACTIVE = 1
#: Fields that only answers have: requests with them are taken, without them.
OUTPUT_ONLY = (
    "state",
    "detached",
    "satisfies_pzs",
    "topic_message_retention_duration",
    "analytics_hub_subscription_info",
)
#: Fields of topics and subscriptions for what the twin doesn't do.
_LEFT_OUT = (
    "schema_settings",
    "ingestion_data_source_settings",
    "message_transforms",
    "bigquery_config",
    "bigtable_config",
    "cloud_storage_config",
)
#: Says in which format messages are pushed; every push subscription has it.
_PUSH_VERSION = "x-goog-version"

_NAME = re.compile(
    r"projects/[^/]+/(topics|subscriptions)/(?!goog)[A-Za-z][\w.~+%-]{2,254}", re.ASCII
)
_PROJECT = re.compile(r"projects/[^/]+")
#: Of an ack id as the twin makes them.
_ACK_ID = re.compile(r"\d+-\d+-[0-9a-f]{16}-+")
_LABEL_KEY = re.compile(r"[a-z\u00df-\U0010ffff][\w-]{0,62}")
_LABEL_VALUE = re.compile(r"[\w-]{0,63}")
#: The twin pushes without TLS to this machine, where the service pushes to nobody.
_LOOPBACK = re.compile(r"localhost|127\.[\d.]+|::1")


_REVOKED = (
    "Getting metadata from plugin failed with error: "
    "('invalid_grant: Account has been deleted', {'error': 'invalid_grant'})"
)


class Refused(Exception):
    """A request that is answered with INVALID_ARGUMENT, or with another status."""

    #: gRPC's trailing metadata, with the error's details.
    trailing: tuple[tuple[str, bytes], ...] = ()

    def __init__(self, text: str, status: str = "INVALID_ARGUMENT") -> None:
        super().__init__(text)
        self.status = status


def left_out(what: str) -> Refused:
    """The answer to a call or a setting that the twin doesn't know."""
    return Refused(
        f"the twin leaves out {what}: docs/testing.md lists what it leaves out, and why",
        "UNIMPLEMENTED",
    )


def credentials(behaviour: Behaviour) -> None:
    """Raises Refused if they are revoked."""
    if behaviour.revoked:
        raise Refused(_REVOKED, "UNAVAILABLE")


def name(path: str, kind: str) -> None:
    """``kind``: ``topics`` or ``subscriptions``."""
    found = _NAME.fullmatch(path)
    if found is None or found[1] != kind:
        raise Refused(f"Invalid resource name given (name={path}).")


def project(path: str) -> None:
    if not _PROJECT.fullmatch(path):
        raise Refused(f"Invalid resource name given (name={path}).")


def settings(wanted: Any) -> None:
    """Of a topic or subscription: refuse those that the twin leaves out."""
    for field, _ in wanted.ListFields():
        if field.name in _LEFT_OUT:
            raise left_out(field.name)


def made(wanted: Any) -> None:
    """Of a topic or subscription that is created: drop the fields that are not the caller's to set."""
    known = wanted.DESCRIPTOR.fields_by_name
    for field in OUTPUT_ONLY:
        if field in known:
            wanted.ClearField(field)
    if "state" in known:  # a topic's is younger than the oldest google-cloud-pubsub that we take
        wanted.state = _ACTIVE


def topic(wanted: Any) -> None:
    _labels(wanted.labels)
    if wanted.HasField("message_retention_duration"):
        _retention(seconds(wanted.message_retention_duration))


def subscription(wanted: Any) -> None:
    """Of one whose defaults are filled in."""
    _labels(wanted.labels)
    if not 10 <= wanted.ack_deadline_seconds <= 600:
        raise Refused("ack_deadline_seconds: 10 to 600.")
    retention = seconds(wanted.message_retention_duration)
    _retention(retention)
    if wanted.expiration_policy.HasField("ttl"):
        ttl = seconds(wanted.expiration_policy.ttl)
        if ttl < max(_DAY, retention):
            raise Refused("expiration_policy.ttl: a day at least, and no less than the retention.")
    dead = wanted.dead_letter_policy
    if dead.dead_letter_topic:
        name(dead.dead_letter_topic, "topics")
        if not _DELIVERIES[0] <= dead.max_delivery_attempts <= _DELIVERIES[1]:
            raise Refused("max_delivery_attempts: 5 to 100.")
    if wanted.HasField("retry_policy"):
        shortest = seconds(wanted.retry_policy.minimum_backoff)
        longest = seconds(wanted.retry_policy.maximum_backoff)
        if min(shortest, longest) < 0 or max(shortest, longest) > _BACKOFF[1]:
            raise Refused("retry_policy: 0 to 600 seconds.")
        if longest < shortest:  # recorded
            raise Refused(
                f"The specified maximum_backoff {longest:g}s cannot be smaller than minimum_backoff "
                f"{shortest:g}s."
            )
    push(wanted.push_config, exactly_once=wanted.enable_exactly_once_delivery)
    try:
        parse(wanted.filter)
    except FilterError as exc:
        raise Refused(f"Invalid filter: {exc}") from exc


def fill_in(wanted: Any) -> None:
    """The defaults of a subscription, with which the service answers.

    https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#subscription
    """
    wanted.ack_deadline_seconds = wanted.ack_deadline_seconds or 10
    if not wanted.HasField("message_retention_duration"):
        wanted.message_retention_duration.seconds = _DEFAULT_RETENTION
    if not wanted.HasField("expiration_policy"):
        wanted.expiration_policy.ttl.seconds = _EXPIRATION
    if wanted.HasField("retry_policy"):
        for field, default in zip(("minimum_backoff", "maximum_backoff"), _BACKOFF, strict=True):
            if not wanted.retry_policy.HasField(field):
                getattr(wanted.retry_policy, field).seconds = default
    if wanted.dead_letter_policy.dead_letter_topic:
        dead = wanted.dead_letter_policy
        dead.max_delivery_attempts = dead.max_delivery_attempts or _DELIVERIES[0]
    wanted.push_config.SetInParent()
    wanted.state = _ACTIVE
    push_version(wanted.push_config)


def push_version(wanted: Any, before: str = "") -> None:
    """Fill in the format of a push subscription's messages, by default the one that it had before.

    https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#pushconfig
    """
    if wanted.push_endpoint and _PUSH_VERSION not in wanted.attributes:
        wanted.attributes[_PUSH_VERSION] = before or "v1"


def push(wanted: Any, *, exactly_once: bool) -> None:
    """Where it is pushed to: https://cloud.google.com/pubsub/docs/create-push-subscription"""
    if not wanted.push_endpoint:
        return
    try:
        url = urlsplit(wanted.push_endpoint)
        host = url.hostname or ""
    except ValueError:
        host = ""
    schemes = ("https", "http") if _LOOPBACK.fullmatch(host) else ("https",)
    if not host or url.scheme not in schemes:
        raise Refused(
            f"Invalid push endpoint given (endpoint={wanted.push_endpoint}). It must be an https:// URL "
            "(or, for the twin, an http:// URL on this machine)."
        )
    if exactly_once:
        raise Refused("Exactly-once delivery is for pull subscriptions.")
    signed = bool(wanted.oidc_token.service_account_email)
    if signed and importlib.util.find_spec("cryptography") is None:
        raise left_out("tokens where cryptography is not installed (pip install cryptography)")


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
    """Without ids: https://github.com/googleapis/nodejs-pubsub/pull/1194"""
    if not request.ack_ids:
        raise Refused("You have not specified an ack ID in the request.")
    if request.ByteSize() > MAX_ACK_REQUEST:
        raise Refused(f"Request payload size exceeds the limit: {MAX_ACK_REQUEST} bytes.")


def ack_ids(found: Any, *, exactly_once: bool) -> None:
    """Malformed ones end their stream or call; exactly-once subscriptions tell them one by one.

    https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#streamingpullrequest
    """
    for ack_id in () if exactly_once else found:
        if not _ACK_ID.fullmatch(ack_id):
            raise Refused(f"You have passed a malformed ack ID (ack_id={ack_id}).")


def page_size(wanted: int) -> None:
    """Recorded."""
    if not 0 <= wanted <= MAX_PAGE:
        raise Refused(
            f"The value for page_size is out of bounds. You passed {wanted} in the request, but the "
            f"value must be between 0 and {MAX_PAGE}."
        )


def room(kind: str, number: int) -> None:
    """Whether one more may be made. ``kind``: ``topics-per-project``, for one."""
    if number >= MAX_RESOURCES:
        raise Refused(
            f'Your project has exceeded a limit: (type="{kind}", current={number}, '
            f"maximum={MAX_RESOURCES}).",
            "RESOURCE_EXHAUSTED",
        )


def seconds(duration: Any) -> float:
    """Of a google.protobuf.Duration."""
    return float(duration.seconds + duration.nanos / 1e9)


def _labels(found: Any) -> None:
    if len(found) > MAX_LABELS:
        raise Refused(f"There are {len(found)} labels: at most {MAX_LABELS}.")
    for key, value in found.items():
        sound = _LABEL_KEY.fullmatch(key) and _LABEL_VALUE.fullmatch(value)
        if not sound or (key + value).lower() != key + value:
            raise Refused(f"The label {key}={value} is invalid.")


def _retention(found: float) -> None:
    if not _RETENTION[0] <= found <= _RETENTION[1]:
        raise Refused("message_retention_duration: 10 minutes to 31 days.")
