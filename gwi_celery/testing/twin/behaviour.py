"""What the twin does that the emulators don't: each behaviour a switch, with its source.

Every one is on, at the strictest reading of its source. ``LENIENT`` has them off, and behaves much as
Google's emulator does. Durations are in seconds, rates from 0 to 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from sys import maxsize
from typing import Annotated, Any, Final, TypeAlias, TypeVar, get_type_hints

SomeSwitches = TypeVar("SomeSwitches", bound="Switches")
#: How often something happens, from 0 (never) to 1 (always).
Rate: TypeAlias = Annotated[float, "rate"]


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= most


#: Kind of a switch -> (which values it takes, whether this is one).
_KINDS: Final[dict[Any, tuple[str, Callable[[Any], bool]]]] = {
    bool: ("true or false", lambda value: isinstance(value, bool)),
    int: ("a whole number", lambda value: isinstance(value, int) and _is_number(value, maxsize)),
    float: ("a number, 0 or more", lambda value: _is_number(value, maxsize)),
    Rate: ("a number from 0 to 1", lambda value: _is_number(value, 1)),
}


@dataclass(frozen=True)
class Switches:
    """What all sets of switches can do."""

    def changed(self: SomeSwitches, **switches: Any) -> SomeSwitches:
        """With other values. Raises ValueError for an unknown switch, or for a value it doesn't take."""
        kinds = get_type_hints(type(self), include_extras=True)
        for name, value in switches.items():
            if name not in kinds:
                raise ValueError(f"unknown switch {name!r}; there are: {', '.join(kinds)}")
            takes, fits = _KINDS[kinds[name]]
            if not fits(value):
                raise ValueError(f"{name} is {value!r}: write {takes}")
        return dataclasses.replace(self, **switches)


@dataclass(frozen=True)
class Behaviour(Switches):
    """The switches of a Pub/Sub twin."""

    #: How long an empty pull is held before it answers with nothing.
    #: https://github.com/googleapis/google-cloud-go/issues/1485
    pull_hold: float = 90.0
    #: A pull that its client gave up on still takes messages until its hold is over; they stay leased.
    #: https://cloud.google.com/pubsub/docs/pull-troubleshooting#backlog
    abandoned_pulls_take: bool = True
    #: Share of pulls with ``return_immediately`` that answer empty although there is a backlog.
    #: https://cloud.google.com/pubsub/docs/reference/rest/v1/projects.subscriptions/pull
    immediate_empty: Rate = 0.3
    #: Share of pulls that return fewer messages than asked for, although there are more.
    #: https://cloud.google.com/pubsub/docs/pull#unary_pull
    short_pulls: Rate = 0.2

    #: Streams stop at ``max_outstanding_messages`` and ``max_outstanding_bytes``.
    #: https://cloud.google.com/pubsub/docs/reference/rpc/google.pubsub.v1#streamingpullrequest
    flow_control: bool = True
    #: A stream without a request from its client for this long is closed with UNAVAILABLE; 0: never.
    #: https://github.com/googleapis/google-cloud-python/pull/5413
    stream_silence: float = 60.0
    #: On a stream of protocol version 1 each request without ack ids, a heartbeat, gets an empty answer.
    #: Clients that get none within 15 s open another stream.
    #: https://github.com/googleapis/google-cloud-go/pull/13457
    stream_pongs: bool = True
    #: A stream is closed after this long in any case; 0: never.
    #: https://cloud.google.com/pubsub/docs/pull#streamingpull_api
    stream_life: float = 600.0
    #: A stream that its client half-closed ends with UNAVAILABLE too: each ends with an error.
    #: https://cloud.google.com/pubsub/docs/pull#streamingpull_api
    stream_error: bool = True

    #: Filters are parsed, at most 256 bytes long, and applied.
    #: https://cloud.google.com/pubsub/docs/subscription-message-filter
    filters: bool = True

    #: How long after its creation an entity may be unknown to other calls.
    #: https://cloud.google.com/pubsub/docs/admin#create_a_topic
    settle: float = 2.0
    #: Share of those calls that find it missing.
    #: https://github.com/googleapis/google-cloud-go/issues/9723
    settle_misses: Rate = 0.5
    #: For as long after its first topic a project may refuse others (INVALID_ARGUMENT): it isn't ready.
    #: https://github.com/hashicorp/terraform-provider-google/issues/4349
    projects_settle: bool = True
    #: How long a deleted entity's name can't be used again.
    #: https://cloud.google.com/pubsub/docs/delete-topic
    name_rest: float = 3.0

    #: Share of leases that end early, after a third of their time.
    #: https://cloud.google.com/pubsub/docs/lease-management
    early_expiry: Rate = 0.002
    #: A retry policy delays messages whose lease expired too, not only nacked ones.
    #: https://cloud.google.com/pubsub/docs/handling-failures#exponential_backoff
    retry_on_expiry: bool = True
    #: With ordering, all later messages of a redelivered one's key are redelivered too, even acked ones.
    #: https://cloud.google.com/pubsub/docs/ordering#consider_when_ordering
    ordered_redelivery: bool = True
    #: Share of ack ids that an exactly-once subscription refuses for now (TRANSIENT_FAILURE_...).
    #: https://cloud.google.com/pubsub/docs/exactly-once-delivery
    transient_acks: Rate = 0.01
    #: A publish request takes one ordering key only (FAILED_PRECONDITION).
    #: https://github.com/yoshidan/google-cloud-rust/issues/226
    one_ordering_key: bool = True

    #: What ``checks.py`` refuses: sizes, counts, and the values that settings and requests may have.
    #: https://cloud.google.com/pubsub/quotas#resource_limits
    limits: bool = True
    #: Admin calls a minute, before RESOURCE_EXHAUSTED; 0: any number.
    #: https://cloud.google.com/pubsub/quotas#quotas
    admin_quota: int = 6000

    #: How often Cloud Monitoring measures what waits in a subscription.
    #: https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-pubsub
    measured_every: float = 60.0
    #: How much later a measurement can be read.
    #: https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-pubsub
    measured_late: float = 120.0

    #: Share of calls that fail with UNAVAILABLE or INTERNAL, half of them after they took effect.
    #: https://cloud.google.com/pubsub/docs/reference/error-codes
    faults: Rate = 0.001
    #: Publish too may fail after it took effect, so that trying again makes a second message.
    #: https://cloud.google.com/pubsub/docs/retry-requests
    published_twice: bool = True
    #: Every call ends as gRPC ends it whose credentials were revoked: UNAVAILABLE, before it is sent.
    #: Off by default, alone among the switches: no caller survives it, each has to report it.
    #: https://github.com/googleapis/google-auth-library-python/blob/main/google/auth/transport/grpc.py
    revoked: bool = False
    #: Added to each call: the way to a region.
    latency: float = 0.0


@dataclass(frozen=True)
class FirestoreBehaviour(Switches):
    """The switches of a Firestore twin: a proxy for Google's emulator."""

    #: A query or count without an index in the package's ``firestore.indexes.json`` fails
    #: (FAILED_PRECONDITION).
    #: https://cloud.google.com/firestore/docs/query-data/index-overview
    indexes: bool = True
    #: Share of queries whose first answer reports progress: a ``read_time``, and no document.
    #: https://cloud.google.com/firestore/docs/reference/rpc/google.firestore.v1#runqueryresponse
    progress: Rate = 0.1
    #: The admin calls report indexes and TTL policies as ready; else as still being made.
    #: https://cloud.google.com/firestore/docs/query-data/indexing
    ready: bool = True
    #: Share of commits that are ABORTED without effect, as under contention.
    #: https://cloud.google.com/firestore/docs/understand-error-codes
    aborted: Rate = 0.005
    #: Share of commits and reads that fail with UNAVAILABLE, half of the commits after they took effect.
    #: https://cloud.google.com/firestore/docs/understand-error-codes
    faults: Rate = 0.002
    #: Share of commits that fail with DEADLINE_EXCEEDED after they took effect.
    #: https://cloud.google.com/firestore/docs/understand-error-codes
    late: Rate = 0.002
    #: Share of calls that find a quota used up (RESOURCE_EXHAUSTED).
    #: https://cloud.google.com/firestore/quotas
    exhausted: Rate = 0.0005
    #: A listen stream is closed after this long; 0: never.
    #: https://cloud.google.com/firestore/docs/query-data/listen
    listen_life: float = 300.0
    #: Added to each call: the way to a region.
    latency: float = 0.0


STRICT: Final = Behaviour()
LENIENT: Final = Behaviour(
    abandoned_pulls_take=False,
    immediate_empty=0.0,
    short_pulls=0.0,
    flow_control=False,
    stream_silence=0.0,
    stream_pongs=False,
    stream_life=0.0,
    stream_error=False,
    filters=False,
    settle=0.0,
    projects_settle=False,
    name_rest=0.0,
    early_expiry=0.0,
    retry_on_expiry=False,
    ordered_redelivery=False,
    transient_acks=0.0,
    one_ordering_key=False,
    limits=False,
    admin_quota=0,
    measured_late=0.0,
    faults=0.0,
    published_twice=False,
)

FIRESTORE_STRICT: Final = FirestoreBehaviour()
FIRESTORE_LENIENT: Final = FirestoreBehaviour(
    indexes=False,
    progress=0.0,
    aborted=0.0,
    faults=0.0,
    late=0.0,
    exhausted=0.0,
    listen_life=0.0,
)
