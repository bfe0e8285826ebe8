"""The only importer of Google's Pub/Sub library (but for tests); its errors become this package's here.

RPCs are made on the bare gRPC stubs with the library's own messages: a confirmed publish takes
0.3 ms this way, and 1.5 ms with the generated client. One channel per process: a forked child makes its
own, and neither uses nor closes the inherited one.

What a status means (https://cloud.google.com/pubsub/docs/reference/error-codes):

=================================================  =================================================
NOT_FOUND, ALREADY_EXISTS                          NotFound, AlreadyExists
PERMISSION_DENIED, UNAUTHENTICATED; NOT_FOUND      BrokerUnusable, with the role and the command
in mode "provisioned"; no token available; what
the project's organization forbids
UNAVAILABLE, DEADLINE_EXCEEDED, ABORTED,           BrokerUnavailable: the call may have taken effect;
INTERNAL, UNKNOWN, CANCELLED, RESOURCE_EXHAUSTED   every call of this package can be retried
any, with a reason for each ack id                 AckIdsRefused or AckIdsRefusedForNow
400 "retry this operation" on a new project        BrokerUnavailable: its policies are not ready yet
anything else                                      BrokerError: retrying can't help
=================================================  =================================================
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote

import grpc
from google.api_core.exceptions import RetryError, from_grpc_error
from google.api_core.retry import Retry, if_exception_type
from google.protobuf import empty_pb2, field_mask_pb2
from google.pubsub_v1 import types

from gwi_celery import shield
from gwi_celery.backoff import Backoff
from gwi_celery.brokers.pubsub import advice
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.errors import BrokerError, BrokerUnavailable, BrokerUnusable, NotFound
from gwi_celery.gcp import fork_gate, rpcs
from gwi_celery.gcp.channel import Channel
from gwi_celery.gcp.credentials import Access, NoCredentials

#: Seconds within which gRPC's thread that waits for a connection has ended after it was told to: it looks
#: every 0.2 s (``grpc._channel._poll_connectivity``).
_LOOKS_ON = 0.5

#: The protobuf messages, without the library's wrappers.
pb = {
    name: getattr(types, name).pb()
    for name in (
        "AcknowledgeRequest",
        "CreateSnapshotRequest",
        "DeadLetterPolicy",
        "DeleteSubscriptionRequest",
        "DeleteTopicRequest",
        "ExpirationPolicy",
        "GetSubscriptionRequest",
        "GetTopicRequest",
        "ListSubscriptionsRequest",
        "ListSubscriptionsResponse",
        "ListTopicSubscriptionsRequest",
        "ListTopicSubscriptionsResponse",
        "ListTopicsRequest",
        "ListTopicsResponse",
        "MessageStoragePolicy",
        "ModifyAckDeadlineRequest",
        "ModifyPushConfigRequest",
        "PublishRequest",
        "PublishResponse",
        "PubsubMessage",
        "PullRequest",
        "PullResponse",
        "ReceivedMessage",
        "RetryPolicy",
        "SeekRequest",
        "SeekResponse",
        "StreamingPullRequest",
        "StreamingPullResponse",
        "Subscription",
        "Topic",
        "UpdateSubscriptionRequest",
        "UpdateTopicRequest",
    )
}
FieldMask = field_mask_pb2.FieldMask
_Empty = empty_pb2.Empty

#: RPC -> (service, type of the answer).
_RPCS = {
    "CreateTopic": ("Publisher", pb["Topic"]),
    "GetTopic": ("Publisher", pb["Topic"]),
    "UpdateTopic": ("Publisher", pb["Topic"]),
    "ListTopics": ("Publisher", pb["ListTopicsResponse"]),
    "ListTopicSubscriptions": ("Publisher", pb["ListTopicSubscriptionsResponse"]),
    "DeleteTopic": ("Publisher", _Empty),
    "Publish": ("Publisher", pb["PublishResponse"]),
    "CreateSubscription": ("Subscriber", pb["Subscription"]),
    "GetSubscription": ("Subscriber", pb["Subscription"]),
    "UpdateSubscription": ("Subscriber", pb["Subscription"]),
    "ListSubscriptions": ("Subscriber", pb["ListSubscriptionsResponse"]),
    "DeleteSubscription": ("Subscriber", _Empty),
    "Pull": ("Subscriber", pb["PullResponse"]),
    "Acknowledge": ("Subscriber", _Empty),
    "ModifyAckDeadline": ("Subscriber", _Empty),
    "ModifyPushConfig": ("Subscriber", _Empty),
    "Seek": ("Subscriber", pb["SeekResponse"]),
}

#: The field of the request by which Google routes a call, where that isn't topic or subscription.
_ROUTED_BY = {
    "CreateTopic": "name",
    "CreateSubscription": "name",
    "UpdateTopic": "topic.name",
    "UpdateSubscription": "subscription.name",
    "ListTopics": "project",
    "ListSubscriptions": "project",
}

_TEMPORARY = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)

#: Calls whose errors give a reason for each ack id, and how the reasons begin.
_BY_ACK_ID = frozenset({"Acknowledge", "ModifyAckDeadline"})
_PERMANENT, _TRANSIENT = "PERMANENT_FAILURE_", "TRANSIENT_FAILURE_"
#: Pub/Sub's text while it doesn't know a new project's organization policy yet. Its status is that of a
#: bad request (https://github.com/hashicorp/terraform-provider-google/issues/4349).
_NOT_READY = "retry this operation"
_BAD_REQUEST = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION})

_CHANNEL_OPTIONS = [
    # A message may have 10 MB, and a pull several of them.
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # gRPC's own pauses between attempts to connect grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the time that one attempt may take.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # A blocked pull notices a peer that has silently disappeared.
    ("grpc.keepalive_time_ms", 300_000),
    # Each client has a connection of its own: closing one leaves the others.
    ("grpc.use_local_subchannel_pool", 1),
]

#: OAuth scopes of the credentials.
SCOPES = ("https://www.googleapis.com/auth/pubsub",)
#: Seconds for which other calls may not find a new entity: Pub/Sub is eventually consistent.
_SETTLES = 10.0
#: RPCs by which a connection learns of an entity. If another connection created it, its age is unknown.
_FIRST_SEEN_BY = frozenset({"CreateTopic", "CreateSubscription", "GetTopic", "GetSubscription"})
#: First and longest pause, seconds, between two calls that don't find it.
_SETTLING_PAUSES = (0.1, 1.0)


class AlreadyExists(BrokerError):
    """A topic or subscription of that name exists already."""


class AckIdsRefused(BrokerError):
    """An exactly-once subscription refused these ids of a request, and took the others.

    https://cloud.google.com/pubsub/docs/exactly-once-delivery

    Args:
        text: Of the error.
        reasons: Ack id -> PERMANENT_FAILURE_... or TRANSIENT_FAILURE_...
    """

    def __init__(self, text: str, reasons: Mapping[str, str]) -> None:
        super().__init__(text)
        #: Ids that may be sent again, and ids whose lease is lost.
        self.retryable = {id for id, why in reasons.items() if why.startswith(_TRANSIENT)}
        self.lost = set(reasons) - self.retryable


class AckIdsRefusedForNow(AckIdsRefused, BrokerUnavailable):
    """At least one of them may be sent again."""


class Client:
    """RPCs of one connection. Any thread may use it; a forked child gets a channel of its own."""

    def __init__(self, options: PubSubOptions) -> None:
        self._options = options
        self._hurry = threading.local()
        self._access = Access(SCOPES)
        self._channel = Channel(partial(_connect, options, self._access))
        self._metadata: dict[tuple[str, str], Any] = {}
        #: Path of an entity created or first seen recently -> monotonic time when it has settled.
        self._young: dict[str, float] = {}
        #: Called with the name of each RPC that is made; for tests and metrics.
        self.on_call: Callable[[str], None] | None = None

    def call(self, rpc: str, request: Any, resource: str, timeout: float | None = None) -> Any:
        """Make one RPC and wait. Raises as the table above says; errors name ``resource``.

        A call that doesn't find a new entity is retried until that is settled.
        """
        pauses = Backoff(*_SETTLING_PAUSES)
        while True:
            try:
                return self._call_once(rpc, request, resource, timeout)
            except NotFound:
                settled = max(
                    self._young.get(each, 0.0) for each in _looked_up(rpc, request, resource)
                )
                pause = pauses.next()
                if time.monotonic() + pause > settled:
                    raise
            time.sleep(pause)

    def settling(self, resource: str) -> bool:
        """Whether it is so new that calls may not find it although it exists."""
        return time.monotonic() < self._young.get(resource, 0.0)

    def first_seen(self, resource: str) -> None:
        """A listing named it. If this connection didn't know it before, it may be new."""
        self._young.setdefault(resource, time.monotonic() + _SETTLES)

    def _call_once(self, rpc: str, request: Any, resource: str, timeout: float | None) -> Any:
        stub, metadata = self._stub(rpc), self._routing(rpc, resource)
        with shield.section(), fork_gate.call():
            try:
                wanted = self._timeout(timeout or self._options.timeout)
                answer = stub(request, timeout=wanted, metadata=metadata)
            except grpc.RpcError as exc:
                if exc.code() is grpc.StatusCode.ALREADY_EXISTS:
                    self._young[resource] = time.monotonic() + _SETTLES
                raise self.error(exc, rpc, resource) from exc
        if rpc in _FIRST_SEEN_BY:
            self._young[resource] = time.monotonic() + _SETTLES
            if rpc == "GetSubscription":  # the topic may be as new, and isn't looked up itself
                self._young[answer.topic] = self._young[resource]
        elif rpc.startswith("Delete"):
            self._young.pop(resource, None)
        return answer

    @contextlib.contextmanager
    def within(self, seconds: float) -> Iterator[None]:
        """Limit the total time of this thread's calls inside the block."""
        self._hurry.until = time.monotonic() + seconds
        try:
            yield
        finally:
            del self._hurry.until

    def _timeout(self, wanted: float) -> float:
        until = getattr(self._hurry, "until", None)
        return wanted if until is None else max(min(wanted, until - time.monotonic()), 0.05)

    def persist(self, rpc: str, request: Any, resource: str, total: float | None = None) -> Any:
        """As :meth:`call`, retrying temporary failures for ``total`` seconds (the option ``timeout``)."""
        total = self._timeout(total or self._options.timeout)
        timeout = min(total, self._options.timeout)
        began = time.monotonic()
        try:
            # Nearly all calls succeed at once; only the others pay for the retry wrapper.
            return self.call(rpc, request, resource, timeout)
        except BrokerUnavailable as exc:
            left = total - (time.monotonic() - began)
            if left <= 0:
                raise
            retry = Retry(
                predicate=if_exception_type(BrokerUnavailable),
                initial=0.05,
                maximum=1.0,
                multiplier=2.0,
                timeout=left,
            )
            try:
                return retry(self.call)(rpc, request, resource, timeout)
            except RetryError as error:
                raise (error.cause or exc) from error

    def start(self, rpc: str, request: Any, resource: str, timeout: float) -> Any:
        """Begin one RPC; its gRPC future. The caller has entered the fork gate."""
        return self._stub(rpc).future(
            request, timeout=timeout, metadata=self._routing(rpc, resource)
        )

    def begin(
        self,
        rpc: str,
        request: Any,
        resource: str,
        timeout: float | None = None,
        *,
        wait: bool = True,
    ) -> Any:
        """Begin one RPC inside the fork gate, which is left when it is done; its gRPC future.

        ``wait`` until a fork that is under way is over; otherwise BrokerUnavailable is raised then.
        """
        if wait:
            fork_gate.enter()
        elif not fork_gate.try_enter():
            raise BrokerUnavailable("this process forks")
        try:
            future = self.start(rpc, request, resource, timeout or self._options.timeout)
        except BaseException:
            fork_gate.leave()
            raise
        future.add_done_callback(lambda _: fork_gate.leave())
        return future

    def stream(self, requests: Iterator[Any], resource: str) -> Any:
        """Open a StreamingPull; an iterator of answers. The caller has entered the fork gate."""
        if self.on_call is not None:
            self.on_call("StreamingPull")
        rpcs.count("StreamingPull")
        stub = self._channel.get().stream_stream(
            "/google.pubsub.v1.Subscriber/StreamingPull",
            request_serializer=_serialize,
            response_deserializer=pb["StreamingPullResponse"].FromString,
        )
        return stub(requests, metadata=self._routing("StreamingPull", resource))

    def error(self, exc: Any, rpc: str, resource: str) -> Exception:
        """This package's error for gRPC's."""
        code, details = exc.code(), exc.details() or ""
        if code is grpc.StatusCode.NOT_FOUND:
            if advice.PROJECT_UNKNOWN.search(details):
                return BrokerUnusable(advice.no_project(self._options, details))
            if not self._options.managed:
                return BrokerUnusable(advice.missing(self._options, resource))
            return NotFound(f"{resource} does not exist ({details})")
        if code is grpc.StatusCode.ALREADY_EXISTS:
            return AlreadyExists(f"{resource} exists")
        if code is grpc.StatusCode.PERMISSION_DENIED:
            return BrokerUnusable(advice.forbidden(self._options, rpc, resource, details))
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return BrokerUnusable(advice.unauthenticated(rpc, resource, details))
        refused = self._access.refused(details)
        if refused is not None:
            return BrokerUnusable(advice.no_credentials(refused))
        text = f"{rpc} on {resource} at {self._options.endpoint}: {code.name}: {details}"
        if rpc in _BY_ACK_ID:
            reasons = _reasons(exc)
            if reasons:
                for_now = any(why.startswith(_TRANSIENT) for why in reasons.values())
                return (AckIdsRefusedForNow if for_now else AckIdsRefused)(text, reasons)
        if code is grpc.StatusCode.UNAVAILABLE or code is grpc.StatusCode.DEADLINE_EXCEEDED:
            text = f"{advice.unavailable(self._options)} ({text})"
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            text += (
                "; a quota of Pub/Sub is used up: see the project's quotas page, or publish slower"
            )
        if not_ready(exc):
            return BrokerUnavailable(f"{advice.not_ready(self._options)} ({text})")
        if code in _TEMPORARY:
            return BrokerUnavailable(text)
        cause = advice.by_project(resource, details)
        return BrokerError(text) if cause is None else BrokerUnusable(cause)

    def ready(self, timeout: float) -> None:
        """Wait for a connection to the endpoint, without any RPC. Raises BrokerUnavailable."""
        fork_gate.enter()
        try:
            future = grpc.channel_ready_future(self._channel.get())
            try:
                future.result(timeout=timeout)
            except grpc.FutureTimeoutError as exc:
                raise BrokerUnavailable(
                    f"{advice.unavailable(self._options)} (no connection within {timeout:g} s)"
                ) from exc
            finally:
                future.cancel()
        finally:
            # gRPC's thread goes on looking at the channel for a moment: a child forked then may crash.
            leaves = threading.Timer(_LOOKS_ON, fork_gate.leave)
            leaves.daemon = True
            leaves.start()

    def close(self) -> None:
        """Close this process's channel. Safe to call twice; it opens again when it is used."""
        self._channel.close()

    # --- internals ----------------------------------------------------------------------------

    def _stub(self, rpc: str) -> Any:
        if self.on_call is not None:
            self.on_call(rpc)
        rpcs.count(rpc)
        return self._channel.stub(rpc, partial(_unary, rpc))

    def _routing(self, rpc: str, resource: str) -> Any:
        key = _ROUTED_BY.get(rpc) or ("topic" if "/topics/" in resource else "subscription")
        metadata = self._metadata.get((key, resource))
        if metadata is None:
            header = ("x-goog-request-params", f"{key}={quote(resource)}")
            metadata = self._metadata[key, resource] = (header,)
        return metadata


def _connect(options: PubSubOptions, access: Access) -> Any:
    if options.emulator:
        # Not through the proxy that leads to Google.
        return grpc.insecure_channel(
            options.endpoint, [*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", 0)]
        )
    try:
        return access.channel(options.endpoint, _CHANNEL_OPTIONS)
    except NoCredentials as exc:
        raise BrokerUnusable(advice.no_credentials(str(exc))) from exc


def _unary(rpc: str, channel: Any) -> Any:
    service, answer = _RPCS[rpc]
    return channel.unary_unary(
        f"/google.pubsub.v1.{service}/{rpc}",
        request_serializer=_serialize,
        response_deserializer=answer.FromString,
    )


def _looked_up(rpc: str, request: Any, resource: str) -> tuple[str, ...]:
    """What a call needs to exist."""
    if rpc == "CreateSubscription":
        return request.topic, request.dead_letter_policy.dead_letter_topic
    if rpc == "UpdateSubscription":
        return resource, request.subscription.dead_letter_policy.dead_letter_topic
    return (resource,)


def not_ready(exc: Any) -> bool:
    """Whether gRPC's error says that the project is too new for Pub/Sub."""
    return exc.code() in _BAD_REQUEST and _NOT_READY in (exc.details() or "")


def _reasons(exc: Any) -> dict[str, str]:
    """Ack id -> why it was refused, from the details of gRPC's error."""
    metadata = from_grpc_error(exc).metadata or {}
    return {id: why for id, why in metadata.items() if why.startswith((_PERMANENT, _TRANSIENT))}


def _serialize(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data


@contextlib.contextmanager
def ignoring_missing() -> Iterator[None]:
    """Ignore NotFound: what was to be deleted is already gone."""
    with contextlib.suppress(NotFound):
        yield
