"""Does a real Pub/Sub behave as this package takes for granted? Some minutes, and under a cent.

Everything is made under a prefix of its own and deleted at the end. The checks run side by side, as most
of them wait.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any

import google.auth
import grpc
from google.auth.exceptions import GoogleAuthError

from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.lines import PULL_SECONDS
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.streams import look, open_stream
from gwi_celery.brokers.routing import DIRECT, FANOUT, TOPIC
from gwi_celery.doctor.findings import Finding
from gwi_celery.errors import BrokerUnavailable, GwiError, NotFound

_LEASE = 10
#: Seconds that what was just created may be unknown for.
_SETTLES = 30.0
_WORKERS = 12
_Status = grpc.StatusCode
_AGENT = "service-NUMBER@gcp-sa-pubsub.iam.gserviceaccount.com"

#: What is filtered: (what, filter, attributes that match, attributes that don't).
_FILTERS: tuple[tuple[str, str, dict[str, str], dict[str, str]], ...] = (
    (
        "a direct binding",
        naming.binding_filter(DIRECT, "k"),
        {naming.EXCHANGE: "x", naming.ROUTING_KEY: "k"},
        {naming.EXCHANGE: "x", naming.ROUTING_KEY: "other"},
    ),
    (
        "a topic binding",
        naming.binding_filter(TOPIC, "a.*.c"),
        {naming.EXCHANGE: "x", naming.ROUTING_KEY: "a.b.c"},
        {naming.EXCHANGE: "x", naming.ROUTING_KEY: "z.b.c"},
    ),
    (
        "a fanout binding",
        naming.binding_filter(FANOUT, "k"),
        {naming.EXCHANGE: "x", naming.ROUTING_KEY: "any"},
        {naming.ROUTING_KEY: "any"},
    ),
    (
        "a temporary queue",
        naming.queue_filter("q"),
        {naming.ROUTING_KEY: "q"},
        {naming.ROUTING_KEY: "r"},
    ),
    ("a high priority", naming.priority_filter(5, None), {naming.PRIORITY: "7"}, {"x": "y"}),
    ("the lowest priority", naming.priority_filter(0, 5), {"x": "y"}, {naming.PRIORITY: "7"}),
)


class Trial:
    """Of one project.

    Args:
        options: Of the broker.
        seconds: The longest that one check waits; 300 sees all that there is to see.
    """

    def __init__(self, options: PubSubOptions, seconds: float) -> None:
        self.options = options
        self.seconds = seconds
        self.client = Client(options)
        self._prefix = f"gwi-doctor-{os.urandom(5).hex()}"
        self._made: list[tuple[str, str]] = []

    def run(self) -> Iterator[Finding]:
        """Each finding as soon as it is there; then all that was made is deleted."""
        yield self._who()
        checks = (
            self._names,
            self._fresh,
            self._reuse,
            self._held,
            self._stranded,
            self._ones,
            self._leases,
            self._dead_letter,
            self._filters,
            self._ordering,
            self._late_acks,
            self._idle_stream,
        )
        try:
            with ThreadPoolExecutor(_WORKERS) as threads:
                running: dict[Future[list[Finding]], Callable[[], list[Finding]]] = {
                    threads.submit(check): check for check in checks
                }
                for done in as_completed(running):
                    name = running[done].__name__.strip("_").replace("_", " ")
                    try:
                        yield from done.result()
                    except (GwiError, grpc.RpcError) as exc:
                        yield Finding(name, False, measured=_told(exc))
        finally:
            self._clean_up()

    # --- the checks ---------------------------------------------------------------------------

    def _who(self) -> Finding:
        where = f"project {self.options.project} at {self.options.endpoint}"
        if self.options.emulator:
            return Finding("who asks", None, measured=f"nobody: an emulator, {where}")
        try:
            credentials, _ = google.auth.default()
        except GoogleAuthError as exc:
            return Finding("who asks", False, measured=str(exc))
        account = getattr(credentials, "service_account_email", "") or type(credentials).__name__
        quota = getattr(credentials, "quota_project_id", None)
        return Finding(
            "who asks", None, measured=f"{account}, quota of {quota or 'its own'}, {where}"
        )

    def _names(self) -> list[Finding]:
        topic, subscription = self._pair("a~b%25.c+d")
        self._publish(topic, b"x")
        found = self._look(subscription, 1)
        return [Finding("names with ~, % and +", len(found) == 1, "allowed", f"{len(found)} of 1")]

    def _fresh(self) -> list[Finding]:
        missed, longest = 0, 0.0
        for n in range(20):
            topic = self._topic(f"fresh{n}")
            began = time.monotonic()
            with contextlib.suppress(grpc.RpcError):
                self._rpc("Publish", topic=topic, messages=[{"data": b"x"}])
                continue
            missed += 1
            self._publish(topic, b"x")
            longest = max(longest, time.monotonic() - began)
        return [
            Finding(
                "publishing right after creating",
                longest < _SETTLES or None,
                "may miss for some seconds: such calls are made again",
                f"{missed} of 20 missed, {longest:.1f} s at the longest",
            )
        ]

    def _reuse(self) -> list[Finding]:
        topic = self._topic("reused")
        self._patiently("DeleteTopic", topic=topic)
        began = time.monotonic()
        self._topic("reused")
        took = time.monotonic() - began
        return [
            Finding("a deleted name is free again", None, "after some seconds", f"{took:.1f} s")
        ]

    def _held(self) -> list[Finding]:
        _, subscription = self._pair("held")
        began = time.monotonic()
        try:
            self._patiently("Pull", self.seconds, subscription=subscription, max_messages=1)
        except grpc.RpcError as exc:
            if exc.code() is not _Status.DEADLINE_EXCEEDED:
                raise
            return [Finding("an empty pull is held", None, "90 s", f"over {self.seconds:g} s")]
        took = time.monotonic() - began
        return [
            Finding("an empty pull is held", took < PULL_SECONDS - 5, "90 s", f"{took:.1f} s"),
        ]

    def _stranded(self) -> list[Finding]:
        found = []
        for kind, leave in (("pull", self._leave_a_pull), ("stream", self._leave_a_stream)):
            topic, subscription = self._pair(f"stranded-{kind}")
            late, pulled = 0, kind == "pull"
            for _ in range(3):
                leave(subscription)
                self._publish(topic, b"x")
                began = time.monotonic()
                while not (received := self._look(subscription, 1)):
                    if time.monotonic() - began > 3 * _LEASE:
                        break
                late += time.monotonic() - began > _LEASE / 2
                self._ack(subscription, received)
            found.append(
                Finding(
                    f"messages late by a lease after a {kind} was ended by its client",
                    (late == 0) or (None if pulled else False),
                    "some" if pulled else "none",
                    f"{late} of 3",
                    "avoid priority_levels: such queues are pulled from" if pulled and late else "",
                )
            )
        return found

    def _leave_a_pull(self, subscription: str) -> None:
        with contextlib.suppress(grpc.RpcError):
            self._rpc("Pull", 2.0, subscription=subscription, max_messages=1)

    def _leave_a_stream(self, subscription: str) -> None:
        self._look(subscription, 1)

    def _ones(self) -> list[Finding]:
        topic, subscription = self._pair("ones")
        self._publish(topic, *[b"x"] * 20)
        got = empty = 0
        while got < 20 and empty < 60:
            answer = self._patiently(
                "Pull", subscription=subscription, max_messages=1, return_immediately=True
            )
            got += len(answer.received_messages)
            empty += not answer.received_messages
        return [
            Finding(
                "immediate pulls of one from a backlog of 20",
                None,
                "may be empty: none is taken for an empty queue",
                f"{got} messages, {empty} empty",
            )
        ]

    def _leases(self) -> list[Finding]:
        topic, subscription = self._pair("lease")
        self._publish(topic, b"x")
        first = self._look(subscription, 1)
        began = time.monotonic()
        while first and not self._look(subscription, 1):
            if time.monotonic() - began > 6 * _LEASE:
                break
        took = time.monotonic() - began
        holds = bool(first) and took >= _LEASE - 3
        return [Finding(f"a lease of {_LEASE} s", holds, f"{_LEASE} s", f"{took:.1f} s")]

    def _dead_letter(self) -> list[Finding]:
        dead_topic, dead = self._pair("dead")
        policy = {"dead_letter_topic": dead_topic, "max_delivery_attempts": 5}
        topic, subscription = self._pair("dying", dead_letter_policy=policy)
        self._publish(topic, b"x")
        until = time.monotonic() + min(self.seconds, 60) + 20
        deliveries = 0
        found: list[Any] = []
        while not found and time.monotonic() < until:
            received = self._look(subscription, 1)
            for item in received:
                deliveries = max(deliveries, item.delivery_attempt)
                self._patiently(
                    "ModifyAckDeadline",
                    subscription=subscription,
                    ack_ids=[item.ack_id],
                    ack_deadline_seconds=0,
                )
            if deliveries >= 5 or not received:
                found = self._look(dead, 1)
        return [
            Finding(
                "the dead letter after 5 deliveries",
                bool(found),
                "forwarded",
                f"{deliveries} deliveries, {'forwarded' if found else 'not forwarded'}",
                "" if found else f"grant {_AGENT} publisher on dead letters, subscriber on queues",
            )
        ]

    def _filters(self) -> list[Finding]:
        topic = self._topic("filtered")
        subscriptions = [
            self._subscription(f"filter{n}", topic, filter=text)
            for n, (_, text, _, _) in enumerate(_FILTERS)
        ]
        self._await(topic, *subscriptions)
        found = []
        for (what, text, hit, miss), subscription in zip(_FILTERS, subscriptions, strict=True):
            sent = {f"hit {what}".encode(): hit, f"miss {what}".encode(): miss}
            messages = [{"data": data, "attributes": each} for data, each in sent.items()]
            self._patiently("Publish", topic=topic, messages=messages)
            received = {item.message.data for item in self._look(subscription, 50)}
            data = {body.decode().split()[0] for body in received & sent.keys()}
            missed = "hit" not in data
            leaks = bool(text) and "miss" in data
            found.append(
                Finding(
                    f"the filter of {what}",
                    False if missed else (None if leaks else True),
                    "hits only" if text else "everything",
                    ", ".join(sorted(data)) or "nothing",
                    "what it lets through is delivered, checked on arrival, and billed"
                    if leaks
                    else "",
                )
            )
        return found

    def _ordering(self) -> list[Finding]:
        topic = self._topic("ordered")
        self._publish(topic, b"x")
        messages = [{"data": b"x", "ordering_key": key} for key in "ab"]
        try:
            self._rpc("Publish", topic=topic, messages=messages)
        except grpc.RpcError as exc:
            measured = exc.code().name
        else:
            measured = "accepted"
        what = "two ordering keys in one request"
        return [Finding(what, None, "FAILED_PRECONDITION: none is ever made", measured)]

    def _late_acks(self) -> list[Finding]:
        topic, subscription = self._pair("once", enable_exactly_once_delivery=True)
        self._publish(topic, b"x")
        received = self._look(subscription, 1)
        time.sleep(_LEASE + 2)
        try:
            self._rpc(
                "Acknowledge", subscription=subscription, ack_ids=[m.ack_id for m in received]
            )
        except grpc.RpcError as exc:
            measured = exc.code().name
        else:
            measured = "accepted"
        return [
            Finding(
                "exactly_once: an ack after the lease",
                (bool(received) and measured != "accepted")
                or (None if self.options.lax else False),
                "refused, with a reason",
                measured,
                "" if measured != "accepted" else "don't rely on exactly_once here",
            )
        ]

    def _idle_stream(self) -> list[Finding]:
        topic, subscription = self._pair("idle")
        self._await(topic, subscription)
        seconds = min(self.seconds, 360)
        ends: list[Any] = []
        until = time.monotonic() + _SETTLES
        while True:
            began = time.monotonic()
            ends.clear()
            stream = open_stream(
                self.client,
                subscription,
                1,
                _LEASE,
                on_response=lambda response: None,
                on_end=ends.append,
            )
            while not ends and time.monotonic() - began < seconds:
                time.sleep(0.05)
            after = time.monotonic() - began
            code = ends[0].code() if ends and isinstance(ends[0], grpc.RpcError) else _Status.OK
            if code is not _Status.NOT_FOUND or time.monotonic() > until:
                break
        ended = f"ended after {after:.0f} s ({code.name})" if ends else "still open"
        if stream is not None:
            stream.cancel()
        return [
            Finding(
                f"an idle stream with heartbeats, for {seconds:g} s",
                None,
                "closed now and then: it is opened again at once",
                ended,
            )
        ]

    # --- calls --------------------------------------------------------------------------------

    def _rpc(self, rpc: str, timeout: float = 15.0, **fields: Any) -> Any:
        kind = {"CreateTopic": "Topic", "CreateSubscription": "Subscription"}
        resource = next(
            fields[name] for name in ("name", "subscription", "topic") if name in fields
        )
        request = pb[kind.get(rpc, f"{rpc}Request")](**fields)
        return self.client.start(rpc, request, resource, timeout).result()

    def _patiently(self, rpc: str, timeout: float = 15.0, **fields: Any) -> Any:
        """As :meth:`_rpc`, made again while what it needs was just made, or it fails for now."""
        until = time.monotonic() + _SETTLES
        unsure = False
        while True:
            try:
                return self._rpc(rpc, timeout, **fields)
            except grpc.RpcError as exc:
                if unsure and exc.code() is _Status.ALREADY_EXISTS:
                    return None  # by the call before
                unsure |= exc.code() in (_Status.UNAVAILABLE, _Status.INTERNAL)
                again = {_Status.NOT_FOUND, _Status.UNAVAILABLE, _Status.INTERNAL, _Status.ABORTED}
                if rpc.startswith("Create"):
                    again.add(_Status.ALREADY_EXISTS)  # a name that rests yet
                if exc.code() not in again or time.monotonic() > until:
                    raise
            time.sleep(0.2)

    def _topic(self, name: str) -> str:
        path = f"projects/{self.options.project}/topics/{self._prefix}-{name}"
        self._made.append(("topic", path))
        self._patiently("CreateTopic", name=path)
        return path

    def _subscription(self, name: str, topic: str, **fields: Any) -> str:
        path = f"projects/{self.options.project}/subscriptions/{self._prefix}-{name}"
        self._made.append(("subscription", path))
        self._patiently(
            "CreateSubscription",
            name=path,
            topic=topic,
            ack_deadline_seconds=_LEASE,
            labels={"gwi-doctor": "1"},
            **fields,
        )
        return path

    def _pair(self, name: str, **fields: Any) -> tuple[str, str]:
        topic = self._topic(name)
        return topic, self._subscription(name, topic, **fields)

    def _await(self, topic: str, *subscriptions: str) -> None:
        """Until all of them are known."""
        self._patiently("GetTopic", topic=topic)
        for subscription in subscriptions:
            self._patiently("GetSubscription", subscription=subscription)

    def _publish(self, topic: str, *bodies: bytes) -> None:
        self._patiently("Publish", topic=topic, messages=[{"data": body} for body in bodies])

    def _look(self, subscription: str, limit: int) -> list[Any]:
        until = time.monotonic() + _SETTLES
        while True:
            try:
                return look(self.client, subscription, limit, _LEASE)
            except (NotFound, BrokerUnavailable):
                if time.monotonic() > until:
                    raise
            time.sleep(0.2)

    def _ack(self, subscription: str, received: list[Any]) -> None:
        if received:
            ids = [item.ack_id for item in received]
            self._patiently("Acknowledge", subscription=subscription, ack_ids=ids)

    def _clean_up(self) -> None:
        for kind, path in reversed(self._made):
            rpc = f"Delete{kind.capitalize()}"
            for _ in range(10):
                try:
                    self._rpc(rpc, 15.0, **{kind: path})
                except grpc.RpcError as exc:
                    if exc.code() in (_Status.PERMISSION_DENIED, _Status.UNAUTHENTICATED):
                        break
                    time.sleep(0.05)
                else:
                    break
        self.client.close()


def _told(exc: Exception) -> str:
    if isinstance(exc, grpc.RpcError):
        return f"{exc.code().name}: {exc.details()}"
    return str(exc)
