"""``pubsub://`` URLs and transport options, as one frozen object."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from gwi_celery.brokers.pubsub.naming import MOST_USER_LABELS
from gwi_celery.errors import ConfigurationError
from gwi_celery.gcp.emulators import PUBSUB_HOST, loopback
from gwi_celery.gcp.endpoints import endpoint as google_endpoint
from gwi_celery.options import (
    BOOLEAN,
    MAPPING,
    SECONDS,
    TEXT,
    TEXTS,
    WHOLE,
    Kind,
    check_known,
    listed,
    optional,
    query,
)
from gwi_celery.text import nearest

MANAGED = "managed"
PROVISIONED = "provisioned"
#: For the option ``emulator``.
STRICT = "strict"

#: Google's global endpoint.
DEFAULT_ENDPOINT = "pubsub.googleapis.com:443"
#: Names the address of an emulator that behaves as the service does: :mod:`gwi_celery.testing.twin`.
STRICT_HOST = "GWI_PUBSUB_TWIN"

#: What ``queues`` may say of a queue.
_QUEUE_KEYS = ("topic", "subscription", "dead_letter_topic")
_RETENTION = (600, 2_678_400)
_LONGEST_BACKOFF = 600
#: Seconds that no call takes.
_TOO_LONG = 3600
_RESOURCE = re.compile(r"(?:projects/[^/]+/(?:topics|subscriptions)/)?[^/\s]+")
_KMS_KEY = re.compile(r"projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+")
_LABEL_KEY = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_LABEL_VALUE = re.compile(r"[a-z0-9_-]{0,63}")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:\[\]]+)(?::(\d+))?")

_PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]*")


@dataclass(frozen=True)
class PubSubOptions:
    """What a connection to Pub/Sub is made with."""

    project: str
    #: ``host:port``.
    endpoint: str = DEFAULT_ENDPOINT
    #: No TLS and no credentials.
    emulator: bool = False
    #: An emulator that behaves as the service does: it holds pulls and closes streams.
    strict: bool = False

    #: "managed" creates and checks what it needs; "provisioned" never makes an admin call.
    mode: str = MANAGED
    #: Managed: change what differs from the configuration, instead of raising ConfigurationError.
    repair: bool = False
    #: The ids of this package's topics and subscriptions start with it.
    prefix: str = "gwi-"
    #: Provisioned: queue -> {"topic": ..., "subscription": ..., "dead_letter_topic": ...}.
    queues: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    #: Seconds a delivery is leased for at a time: the subscription's ack deadline, 10 to 600.
    lease_seconds: float = 30.0
    #: Attempts at a message before its queue's dead letter; 0: no limit.
    max_deliveries: int = 20
    #: Seconds a subscription keeps messages; None: Pub/Sub's own, 7 days.
    retention: float | None = None

    #: A publish returns once the server has the message. False: at once; flushed at exit.
    publisher_confirms: bool = True
    #: Seconds for which one publish is tried before OperationalError.
    publish_timeout: float = 10.0
    #: Seconds any other call may take.
    timeout: float = 10.0

    #: Subscriptions deliver a message at most once at a time, in their region.
    exactly_once: bool = False
    #: Messages of one tenant and run are delivered in the order they were published.
    ordering: bool = False
    #: Lowest priority of each level, such as (0, 3, 6, 9); empty: one level.
    priority_levels: tuple[int, ...] = ()
    #: (shortest, longest) wait of Pub/Sub after a nack, seconds; None: what the nack says.
    retry_policy: tuple[float, float] | None = None
    #: Cloud KMS key of topics (CMEK): projects/P/locations/L/keyRings/R/cryptoKeys/K.
    kms_key: str | None = None
    #: Regions in which messages may be kept, such as ("europe-west1",).
    storage_regions: tuple[str, ...] = ()
    #: Labels of every topic and subscription.
    labels: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _PROJECT.fullmatch(self.project):
            raise ConfigurationError(
                f"{self.project!r} is no Google Cloud project id: write pubsub://my-project"
            )
        if self.mode not in (MANAGED, PROVISIONED):
            raise ConfigurationError(
                f"mode is {self.mode!r}; {nearest(self.mode, [MANAGED, PROVISIONED])}"
            )
        if not 10 <= self.lease_seconds <= 600:
            raise ConfigurationError(
                f"lease_seconds is {self.lease_seconds:g}: Pub/Sub takes 10 to 600"
            )
        if not 0 <= self.max_deliveries <= 100:
            raise ConfigurationError(
                f"max_deliveries is {self.max_deliveries}: Pub/Sub counts up to 100; 0 is no limit"
            )
        if not re.fullmatch(r"(?!goog)[A-Za-z][A-Za-z0-9_.+-]{1,30}", self.prefix):
            raise ConfigurationError(
                f"prefix is {self.prefix!r}: write 2 to 31 letters, digits and -_.+, the first a letter, "
                "and not goog"
            )
        levels = self.priority_levels
        if levels and (list(levels) != sorted(set(levels)) or levels[0] != 0 or levels[-1] > 9):
            raise ConfigurationError(
                f"priority_levels is {list(levels)}: write the lowest priority of each level, "
                "growing, from 0, at most 9; such as [0, 3, 6, 9]"
            )
        if self.repair and self.mode == PROVISIONED:
            raise ConfigurationError("repair needs admin calls, and mode='provisioned' makes none")
        for setting in ("publish_timeout", "timeout"):
            if not 0 < getattr(self, setting) < _TOO_LONG:
                raise ConfigurationError(
                    f"{setting} is {getattr(self, setting):g}: write seconds above 0 and below "
                    f"{_TOO_LONG}"
                )
        if self.retention is not None and not _RETENTION[0] <= self.retention <= _RETENTION[1]:
            raise ConfigurationError(
                f"retention is {self.retention:g} seconds: Pub/Sub takes {_RETENTION[0]} (10 "
                f"minutes) to {_RETENTION[1]} (31 days)"
            )
        if self.retry_policy is not None:
            shortest, longest = self.retry_policy
            if not 0 <= shortest <= longest <= _LONGEST_BACKOFF:
                raise ConfigurationError(
                    f"retry_policy is {shortest:g}, {longest:g}: write the shortest and the longest "
                    f"wait in seconds, 0 to {_LONGEST_BACKOFF}; such as 10, 600"
                )
        if self.kms_key is not None and not _KMS_KEY.fullmatch(self.kms_key):
            raise ConfigurationError(
                f"kms_key is {self.kms_key!r}: write projects/P/locations/L/keyRings/R/cryptoKeys/K"
            )
        self._check_labels()
        self._check_queues()

    def _check_labels(self) -> None:
        if len(self.labels) > MOST_USER_LABELS:
            raise ConfigurationError(
                f"labels has {len(self.labels)}: at most {MOST_USER_LABELS}, as Pub/Sub takes 64 "
                "and names need some"
            )
        labels: Mapping[str, Any] = self.labels
        for key, value in labels.items():
            if not isinstance(value, str) or not _LABEL_VALUE.fullmatch(value):
                raise ConfigurationError(
                    f"labels: {key!r} is {value!r}: write up to 63 of a-z, 0-9, _ and -"
                )
            if not _LABEL_KEY.fullmatch(key) or key.startswith("gwi-"):
                raise ConfigurationError(
                    f"labels has {key!r}: write up to 63 of a-z, 0-9, _ and -, the first a letter, "
                    "and not gwi-, which is this package's"
                )

    def _check_queues(self) -> None:
        queues: Mapping[str, Any] = self.queues
        for queue, mapping in queues.items():
            if not isinstance(mapping, Mapping):
                raise ConfigurationError(
                    f"queues: {queue!r} is {mapping!r}: write "
                    '{"topic": ..., "subscription": ..., "dead_letter_topic": ...}'
                )
            check_known(mapping, _QUEUE_KEYS, f"queues: {queue!r} has ")
            for key, value in mapping.items():
                if not isinstance(value, str) or not _RESOURCE.fullmatch(value):
                    raise ConfigurationError(
                        f"queues: {key} of {queue!r} is {value!r}: write an id, or its full name "
                        f"projects/P/{'subscriptions' if key == 'subscription' else 'topics'}/ID"
                    )

    @property
    def managed(self) -> bool:
        return self.mode == MANAGED

    @property
    def lax(self) -> bool:
        """Whether it is Google's own emulator, which differs from the service."""
        return self.emulator and not self.strict


def _pair(value: Any) -> tuple[float, float]:
    shortest, longest = (SECONDS.read(x) for x in TEXTS.read(value))
    return shortest, longest


OPTIONS = {
    f.name: f
    for f in dataclasses.fields(PubSubOptions)
    if f.name not in ("project", "endpoint", "strict")
}


def parse(
    url: str, options: Mapping[str, Any] | None = None, environ: Mapping[str, str] | None = None
) -> PubSubOptions:
    """From ``pubsub://[host[:port]/]project[?option=value]`` and the transport options.

    An emulator is used when the URL names a host of loopback, or ``emulator=true``, or when it names no
    host and ``PUBSUB_EMULATOR_HOST`` is set. Every other host gets TLS and credentials. Raises
    ConfigurationError.
    """
    environ = os.environ if environ is None else environ
    scheme, found, rest = url.partition("://")
    if not found or scheme != "pubsub":
        raise ConfigurationError(f"{url!r} is no Pub/Sub URL: write pubsub://my-project")
    parts = urlsplit("//x/" + rest)
    segments = [unquote(s) for s in parts.path[1:].split("/") if s]
    if len(segments) not in (1, 2):
        raise ConfigurationError(
            f"{url!r}: write pubsub://my-project, or pubsub://host:port/my-project"
        )
    given = {**(options or {}), **query(url, parts.query)}
    check_known(given, _KINDS, "", " is no option of pubsub://")
    values = {name: _KINDS[name].convert(value, name) for name, value in given.items()}
    if segments[0] == "projects":
        raise ConfigurationError(f"{url!r}: write pubsub://{segments[-1]}")
    stated = values.pop("emulator", None)
    endpoint, emulator = _endpoint(segments[:-1], stated, environ)
    strict = emulator and (stated == STRICT or environ.get(STRICT_HOST) == endpoint)
    return PubSubOptions(
        project=segments[-1], endpoint=endpoint, emulator=emulator, strict=strict, **values
    )


def _endpoint(
    host: list[str], stated: bool | str | None, environ: Mapping[str, str]
) -> tuple[str, bool]:
    """``host:port``, and whether that is an emulator's; ``stated``: the option ``emulator``."""
    if not host:
        named = environ.get(PUBSUB_HOST)
        if named and stated is not False:
            return named, True
        if stated:
            raise ConfigurationError(
                f"emulator is {_shown(stated)}, and nothing names one: write pubsub://host:port/project, "
                f"or set {PUBSUB_HOST}"
            )
        return google_endpoint("pubsub", environ), False
    found = _HOST.fullmatch(host[0])
    if found is None:
        raise ConfigurationError(f"{host[0]!r} is no endpoint: write host:port")
    name, port = found.groups()
    emulator = loopback(name) if stated is None else bool(stated)
    return f"{name}:{port or ('8085' if emulator else '443')}", emulator


def _shown(stated: bool | str) -> str:
    return stated if isinstance(stated, str) else str(stated).lower()


def _emulator(value: Any) -> bool | str:
    return STRICT if value == STRICT else BOOLEAN.read(value)


_KINDS: dict[str, Kind] = {
    "emulator": optional(Kind(_emulator, "true, false or strict")),
    "mode": TEXT,
    "repair": BOOLEAN,
    "prefix": TEXT,
    "queues": MAPPING,
    "lease_seconds": SECONDS,
    "max_deliveries": WHOLE,
    "retention": optional(SECONDS),
    "publisher_confirms": BOOLEAN,
    "publish_timeout": SECONDS,
    "timeout": SECONDS,
    "exactly_once": BOOLEAN,
    "ordering": BOOLEAN,
    "priority_levels": listed(WHOLE, "a list of whole numbers (0,3,6,9 in a URL)"),
    "retry_policy": optional(Kind(_pair, "two numbers of seconds (10,600 in a URL)")),
    "kms_key": optional(TEXT),
    "storage_regions": TEXTS,
    "labels": MAPPING,
}
