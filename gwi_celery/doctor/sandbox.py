"""A trial's own topics and subscriptions, and calls that retry; all are deleted at the end."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from typing import Any, Final

import grpc

from gwi_celery.brokers.pubsub.client import AckIdsRefusedForNow, Client, not_ready, pb
from gwi_celery.brokers.pubsub.looks import look
from gwi_celery.brokers.pubsub.options import MANAGED, PubSubOptions
from gwi_celery.brokers.pubsub.topology.desired import EXPIRATION
from gwi_celery.doctor.calls import told
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, NotFound

#: How the ids of all that trials make begin.
PREFIX: Final = "gwi-doctor-"
#: Label of all that they make: when the trial began, in seconds since 1970.
SINCE: Final = "gwi-doctor"
LEASE = 10
#: Seconds for which something just created may still be unknown.
SETTLES = 30.0
#: Seconds after which a quota is new: those of Pub/Sub are by the minute.
_QUOTA = 90.0
#: Seconds for which something is to be deleted that may not exist.
_UNSURE = 0.5
#: Seconds between two tries of a call, and if a quota is used up.
_PAUSE, _QUOTA_PAUSE = 0.2, 5.0
#: Looks for one message, each of some seconds.
_LOOKS = 3
_Status = grpc.StatusCode


class GivenUp(Exception):
    """The trial ended before the check did."""


class CallFailed(grpc.RpcError):
    """gRPC's error of a call; ``advice`` is this package's, whose text says what to do."""

    def __init__(self, error: Any, advice: Exception) -> None:
        super().__init__(told(error))
        self._error = error
        self.advice = advice

    def code(self) -> Any:
        return self._error.code()

    def details(self) -> str:
        return str(self._error.details() or "")


class Sandbox:
    """The resources of a trial in one project. Any thread may call."""

    def __init__(self, options: PubSubOptions) -> None:
        #: Managed: provisioned mode makes nothing, and this has to.
        self.options = replace(options, mode=MANAGED)
        self.client = Client(self.options)
        #: How the ids of all that it makes begin.
        self.prefix = f"{PREFIX}{os.urandom(5).hex()}"
        self._labels = {**options.labels, SINCE: str(int(time.time()))}
        #: (kind, path) of what was made, and whether that is known.
        self._made: dict[tuple[str, str], bool] = {}
        self._given_up = threading.Event()

    def give_up(self) -> None:
        """Let checks end: calls under way fail, and each further call or pause raises GivenUp."""
        self._given_up.set()
        self.client.close()

    def pause(self, seconds: float) -> None:
        if self._given_up.wait(seconds):
            raise GivenUp

    def rpc(self, rpc: str, timeout: float = 15.0, **fields: Any) -> Any:
        """One call. Raises CallFailed, or BrokerUnusable where there are no credentials."""
        self.pause(0)
        return self._rpc(rpc, timeout, **fields)

    def _rpc(self, rpc: str, timeout: float, **fields: Any) -> Any:
        kind = {"CreateTopic": "Topic", "CreateSubscription": "Subscription"}
        named = ("name", "subscription", "topic", "project")
        resource = next(fields[name] for name in named if name in fields)
        request = pb[kind.get(rpc, f"{rpc}Request")](**fields)
        try:
            return self.client.start(rpc, request, resource, timeout).result()
        except grpc.RpcError as exc:
            raise CallFailed(exc, self.client.error(exc, rpc, resource)) from exc

    def patiently(self, rpc: str, timeout: float = 15.0, **fields: Any) -> Any:
        """As :meth:`rpc`, retried on temporary errors, and while what it needs was just created."""
        began = time.monotonic()
        unsure = False
        while True:
            try:
                return self.rpc(rpc, timeout, **fields)
            except CallFailed as exc:
                if unsure and exc.code() is _Status.ALREADY_EXISTS:
                    return None  # the call before has created it
                unsure |= exc.code() in (_Status.UNAVAILABLE, _Status.INTERNAL)
                again = {_Status.NOT_FOUND, _Status.UNAVAILABLE, _Status.INTERNAL, _Status.ABORTED}
                if rpc.startswith("Create"):
                    again.add(_Status.ALREADY_EXISTS)  # a deleted name is not free at once
                exhausted = exc.code() is _Status.RESOURCE_EXHAUSTED
                patient = exc.code() in again or exhausted or not_ready(exc)
                patient |= isinstance(exc.advice, AckIdsRefusedForNow)
                # No project, no rights, no credentials: nothing that passes.
                patient &= not isinstance(exc.advice, BrokerUnusable)
                if not patient or time.monotonic() - began > (_QUOTA if exhausted else SETTLES):
                    raise
            self.pause(_QUOTA_PAUSE if exhausted else _PAUSE)

    def topic(self, name: str) -> str:
        """A topic as the broker's options make them; its path."""
        options = self.options
        path = f"projects/{options.project}/topics/{self.prefix}-{name}"
        regions = {"allowed_persistence_regions": options.storage_regions}
        wanted: dict[str, Any] = {"labels": self._labels}
        wanted |= {"kms_key_name": options.kms_key} if options.kms_key else {}
        wanted |= {"message_storage_policy": regions} if options.storage_regions else {}
        self._make("topic", path, **wanted)
        return path

    def subscription(self, name: str, topic: str, **fields: Any) -> str:
        path = f"projects/{self.options.project}/subscriptions/{self.prefix}-{name}"
        of_all = {
            "ack_deadline_seconds": LEASE,
            "labels": self._labels,
            # If this process is killed, they vanish by themselves.
            "expiration_policy": {"ttl": {"seconds": EXPIRATION}},
            "message_retention_duration": {"seconds": EXPIRATION},
        }
        self._make("subscription", path, topic=topic, **{**of_all, **fields})
        return path

    def _make(self, kind: str, path: str, **fields: Any) -> None:
        self._made[kind, path] = False
        try:
            self.patiently(f"Create{kind.capitalize()}", name=path, **fields)
        except (BrokerUnusable, CallFailed) as exc:
            if isinstance(getattr(exc, "advice", exc), BrokerUnusable):
                del self._made[kind, path]
            raise
        self._made[kind, path] = True

    def pair(self, name: str, **fields: Any) -> tuple[str, str]:
        topic = self.topic(name)
        return topic, self.subscription(name, topic, **fields)

    def await_(self, topic: str, *subscriptions: str) -> None:
        """Wait until all of them are known."""
        self.patiently("GetTopic", topic=topic)
        for subscription in subscriptions:
            self.patiently("GetSubscription", subscription=subscription)

    def publish(self, topic: str, *bodies: bytes) -> None:
        self.patiently("Publish", topic=topic, messages=[{"data": body} for body in bodies])

    def look(self, subscription: str, limit: int, lease: int = LEASE) -> list[Any]:
        """Messages that are ready now, leased."""
        self.pause(0)
        until = time.monotonic() + SETTLES
        while True:
            try:
                return look(self.client, subscription, limit, lease)[0]
            except (NotFound, BrokerUnavailable):
                if time.monotonic() > until:
                    raise
            self.pause(_PAUSE)

    def first(self, subscription: str, lease: int = LEASE) -> list[Any]:
        """The message that was published, leased; empty if it has not arrived after some seconds."""
        for _ in range(_LOOKS):
            if received := self.look(subscription, 1, lease):
                return received
        return []

    def ack(self, subscription: str, received: list[Any]) -> None:
        if received:
            ids = [item.ack_id for item in received]
            self.patiently("Acknowledge", subscription=subscription, ack_ids=ids)

    # --- the end ------------------------------------------------------------------------------

    def clean_up(self) -> None:
        """Delete all that was made, but for what :meth:`left` names then. Takes two minutes at most."""
        began = time.monotonic()
        for kind, path in reversed(list(self._made)):
            if self._delete(kind, path, began):
                del self._made[kind, path]
            elif time.monotonic() - began > _QUOTA:
                break  # nothing can be reached
        self.client.close()

    def left(self, kind: str) -> dict[str, bool]:
        """Paths of the topics or subscriptions that are not deleted, each with whether it was made for
        sure."""
        return {path: known for (each, path), known in self._made.items() if each == kind}

    def _delete(self, kind: str, path: str, began: float) -> bool:
        """Whether it is gone. Tries until ``began`` is too long ago, and once in any case."""
        since = time.monotonic()
        unsure = not self._made[kind, path]
        while True:
            left = max(began + SETTLES - time.monotonic(), 1.0)
            try:
                self._rpc(f"Delete{kind.capitalize()}", min(left, 15.0), **{kind: path})
                return True
            except BrokerUnusable:
                return False
            except CallFailed as exc:
                now = time.monotonic()
                exhausted = exc.code() is _Status.RESOURCE_EXHAUSTED
                if exc.code() is _Status.NOT_FOUND:
                    # It may be so new that this call doesn't find it.
                    if now > (since + _UNSURE if unsure else began + SETTLES):
                        return True
                else:
                    unsure = True  # it may have taken effect
                    late = now - began > (_QUOTA if exhausted else SETTLES)
                    if late or isinstance(exc.advice, BrokerUnusable):
                        return False
            time.sleep(_QUOTA_PAUSE if exhausted else 0.05)
