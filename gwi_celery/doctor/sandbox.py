"""A trial's own topics and subscriptions, and calls that retry; all are deleted at the end."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

import grpc

from gwi_celery.brokers.pubsub.client import Client, not_ready, pb
from gwi_celery.brokers.pubsub.looks import look
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.errors import BrokerUnavailable, BrokerUnusable, NotFound

LEASE = 10
#: Seconds for which something just created may still be unknown.
SETTLES = 30.0
#: Seconds for which something is to be deleted that may not exist.
_UNSURE = 0.5
#: Looks for one message, each of some seconds.
_LOOKS = 3
_Status = grpc.StatusCode
_REFUSED = (_Status.PERMISSION_DENIED, _Status.UNAUTHENTICATED)


class GivenUp(Exception):
    """The trial ended before the check did."""


class Sandbox:
    """The resources of a trial in one project. Any thread may call."""

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self.client = Client(options)
        self._prefix = f"gwi-doctor-{os.urandom(5).hex()}"
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
        self.pause(0)
        return self._rpc(rpc, timeout, **fields)

    def _rpc(self, rpc: str, timeout: float, **fields: Any) -> Any:
        kind = {"CreateTopic": "Topic", "CreateSubscription": "Subscription"}
        resource = next(
            fields[name] for name in ("name", "subscription", "topic") if name in fields
        )
        request = pb[kind.get(rpc, f"{rpc}Request")](**fields)
        return self.client.start(rpc, request, resource, timeout).result()

    def patiently(self, rpc: str, timeout: float = 15.0, **fields: Any) -> Any:
        """As :meth:`rpc`, retried on temporary errors, and while what it needs was just created."""
        until = time.monotonic() + SETTLES
        unsure = False
        while True:
            try:
                return self.rpc(rpc, timeout, **fields)
            except grpc.RpcError as exc:
                if unsure and exc.code() is _Status.ALREADY_EXISTS:
                    return None  # the call before has created it
                unsure |= exc.code() in (_Status.UNAVAILABLE, _Status.INTERNAL)
                again = {_Status.NOT_FOUND, _Status.UNAVAILABLE, _Status.INTERNAL, _Status.ABORTED}
                if rpc.startswith("Create"):
                    again.add(_Status.ALREADY_EXISTS)  # a deleted name is not free at once
                patient = exc.code() in again or not_ready(exc)
                if not patient or time.monotonic() > until:
                    raise
            self.pause(0.2)

    def topic(self, name: str) -> str:
        path = f"projects/{self.options.project}/topics/{self._prefix}-{name}"
        self._make("topic", path)
        return path

    def subscription(self, name: str, topic: str, **fields: Any) -> str:
        path = f"projects/{self.options.project}/subscriptions/{self._prefix}-{name}"
        of_all = {"ack_deadline_seconds": LEASE, "labels": {"gwi-doctor": "1"}}
        self._make("subscription", path, topic=topic, **{**of_all, **fields})
        return path

    def _make(self, kind: str, path: str, **fields: Any) -> None:
        self._made[kind, path] = False
        try:
            self.patiently(f"Create{kind.capitalize()}", name=path, **fields)
        except (BrokerUnusable, grpc.RpcError) as exc:
            if isinstance(exc, BrokerUnusable) or exc.code() in _REFUSED:
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
            self.pause(0.2)

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

    def clean_up(self) -> None:
        """Delete all that was made."""
        for (kind, path), known in reversed(self._made.items()):
            until = time.monotonic() + (SETTLES if known else _UNSURE)
            while True:
                try:
                    self._rpc(f"Delete{kind.capitalize()}", 15.0, **{kind: path})
                except grpc.RpcError as exc:
                    if exc.code() in _REFUSED or time.monotonic() > until:
                        break
                    if exc.code() is not _Status.NOT_FOUND:  # it may have taken effect
                        until = min(until, time.monotonic() + _UNSURE)
                    time.sleep(0.05)
                else:
                    break
        self.client.close()
