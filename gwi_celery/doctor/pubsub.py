"""Does a real Pub/Sub behave as this package assumes? Takes some minutes, and costs under a cent.

Everything is made under a prefix of its own and deleted at the end.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from functools import partial
from typing import Any

import grpc

from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.lines import PULL_SECONDS
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.streams import open_stream
from gwi_celery.brokers.routing import DIRECT, FANOUT, TOPIC
from gwi_celery.doctor import leftovers
from gwi_celery.doctor.account import permissions, who
from gwi_celery.doctor.calls import told
from gwi_celery.doctor.echo import behind_iam
from gwi_celery.doctor.findings import Finding
from gwi_celery.doctor.grants import AGENT
from gwi_celery.doctor.sandbox import LEASE, SETTLES, CallFailed, Sandbox
from gwi_celery.errors import BrokerUnavailable, GwiError

_Status = grpc.StatusCode
#: Deadlines, in seconds, of the pulls that are given up.
_PULL_DEADLINES = (1.0, 5.0)
#: Leases that are watched, in seconds.
_LEASES = (LEASE, 30, 600)
#: How often each is tried.
_TIMES = 3
#: Cases for the filters: (what, filter, attributes that match, attributes that don't).
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


class Trial(Sandbox):
    """A trial of one project.

    Args:
        options: Those of the broker.
        seconds: The longest that one check waits; with 360 every check can finish.
        echo: Where :mod:`gwi_celery.doctor.echo` answers behind Cloud Run's IAM; "": nowhere.
        echo_account: The account that may invoke it.
    """

    def __init__(
        self, options: PubSubOptions, seconds: float, *, echo: str = "", echo_account: str = ""
    ) -> None:
        super().__init__(options)
        self.seconds = seconds
        self._echo, self._echo_account = echo, echo_account
        self._running: dict[Callable[[], list[Finding]], Future[list[Finding]]] = {}
        self._echoing: Future[list[Finding]] | None = None
        #: Why no check can succeed; "" if they may.
        self._hopeless = ""

    def about(self) -> Iterator[Finding]:
        """Who asks, what that account and Pub/Sub's own may do, and what earlier trials have left.

        If there are no credentials, or nothing can be made, that is the last finding: see :meth:`run`.
        """
        asked = who(self.options)
        yield asked
        if asked.holds is False:
            self._hopeless = asked.what
            return
        what = "making a topic and a subscription"
        try:
            topic, subscription = self.pair("permissions")
            self.await_(topic, subscription)
        except (GwiError, grpc.RpcError) as exc:
            self._hopeless = what
            yield _failed(what, exc)
            return
        yield from _findings("permissions", partial(permissions, self, topic, subscription))
        yield from _findings("leftovers", lambda: [leftovers.swept(self)])

    def run(self) -> Iterator[Finding]:
        """The findings of all checks, in this order; they run at the same time, as most of them wait."""
        if self._hopeless:
            mend = f"mend what is told of {self._hopeless!r}, and run this again"
            yield Finding("all other checks of Pub/Sub", None, "made", "not made", mend, "made")
            return
        checks: list[Callable[[], list[Finding]]] = [
            self._names,
            self._fresh,
            self._reuse,
            self._held,
            *(partial(self._stranded, seconds) for seconds in (*_PULL_DEADLINES, None)),
            self._ones,
            *(partial(self._lease, seconds) for seconds in _LEASES),
            self._dead_letter,
            self._filters,
            self._ordering,
            self._late_acks,
            self._idle_stream,
        ]
        echo = partial(behind_iam, self, self._echo, self._echo_account, self.seconds)
        if self._echo:
            checks.append(echo)
        threads = ThreadPoolExecutor(len(checks), "gwi-doctor")
        self._running = {check: threads.submit(check) for check in checks}
        threads.shutdown(wait=False)
        self._echoing = self._running.get(echo)
        for check, running in self._running.items():
            if check is not echo:
                name = getattr(check, "func", check).__name__
                yield from _findings(name.strip("_").replace("_", " "), running.result)

    def echoed(self) -> Iterator[Finding]:
        """Of the echo service, if there is one; :meth:`run` has begun to ask it."""
        if self._echoing is not None:
            yield from _findings("behind iam", self._echoing.result)

    def clean_up(self) -> None:
        """Stop the checks that still run, and delete all that was made."""
        left = set(self._running.values())
        while left := wait(left, 0).not_done:
            self.give_up()
            wait(left, 1)
        super().clean_up()

    def left_behind(self) -> Iterator[Finding]:
        """What :meth:`clean_up` could not delete."""
        for kind in ("subscription", "topic"):
            paths = self.left(kind)
            if not paths:
                continue
            ids = " ".join(path.split("/")[3] for path in paths)
            mend = (
                f"gcloud pubsub {kind}s delete {ids} --project={self.options.project}, or run this again "
                f"in {leftovers.OLD / 3600:g} hours"
            )
            what = f"{kind}s left behind{'' if any(paths.values()) else ', perhaps'}"
            yield Finding(what, None, "none are", ids, mend, twin="none")

    # --- the checks ---------------------------------------------------------------------------

    def _names(self) -> list[Finding]:
        topic, subscription = self.pair("a~b%25.c+d")
        self.publish(topic, b"x")
        found = self.first(subscription)
        return [
            Finding(
                "names with ~, % and +",
                len(found) == 1,
                "allowed",
                f"{len(found)} of 1",
                twin="1 of 1",
            )
        ]

    def _fresh(self) -> list[Finding]:
        missed, longest = 0, 0.0
        for n in range(20):
            topic = self.topic(f"fresh{n}")
            began = time.monotonic()
            with contextlib.suppress(grpc.RpcError):
                self.rpc("Publish", topic=topic, messages=[{"data": b"x"}])
                continue
            missed += 1
            self.publish(topic, b"x")
            longest = max(longest, time.monotonic() - began)
        return [
            Finding(
                "publishing right after creating",
                longest < SETTLES or None,
                "may fail for some seconds: such calls are retried",
                f"{missed} of 20 missed, {longest:.1f} s at the longest",
                twin="half of them miss, for 2 s",
            )
        ]

    def _reuse(self) -> list[Finding]:
        topic = self.topic("reused")
        self.patiently("DeleteTopic", topic=topic)
        began = time.monotonic()
        self.topic("reused")
        took = time.monotonic() - began
        return [
            Finding(
                "a deleted name is free again",
                None,
                "after some seconds",
                f"{took:.1f} s",
                twin="3 s",
            )
        ]

    def _held(self) -> list[Finding]:
        _, subscription = self.pair("held")
        began = time.monotonic()
        try:
            self.patiently("Pull", self.seconds, subscription=subscription, max_messages=1)
        except grpc.RpcError as exc:
            if exc.code() is not _Status.DEADLINE_EXCEEDED:
                raise
            over = f"over {self.seconds:g} s"
            return [Finding("an empty pull is held", None, "not told", over, twin="90 s")]
        took = time.monotonic() - began
        return [
            Finding(
                "an empty pull is held",
                took < PULL_SECONDS - 5,
                "not told",
                f"{took:.1f} s",
                "" if took < PULL_SECONDS - 5 else "avoid priority_levels",
                twin="90 s",
            ),
        ]

    def _stranded(self, deadline: float | None) -> list[Finding]:
        """How many messages are late after their client gave up a pull, or a stream (None)."""
        kind = "a stream" if deadline is None else f"a pull of {deadline:g} s"
        topic, subscription = self.pair(f"stranded-{deadline or 0:g}")
        late, pulled = 0, deadline is not None
        for _ in range(_TIMES):
            if deadline is None:
                self.look(subscription, 1)
            else:
                with contextlib.suppress(grpc.RpcError):
                    self.rpc("Pull", deadline, subscription=subscription, max_messages=1)
            self.publish(topic, b"x")
            began = time.monotonic()
            while not (received := self.look(subscription, 1)):
                if time.monotonic() - began > 3 * LEASE:
                    break
            late += time.monotonic() - began > LEASE / 2
            self.ack(subscription, received)
        return [
            Finding(
                f"messages late by a lease after {kind} was ended by its client",
                (late == 0) or (None if pulled else False),
                "some" if pulled else "none",
                f"{late} of {_TIMES}",
                "avoid priority_levels: such queues are pulled from" if pulled and late else "",
                twin=f"{_TIMES if pulled else 0} of {_TIMES}",
            )
        ]

    def _ones(self) -> list[Finding]:
        topic, subscription = self.pair("ones")
        self.publish(topic, *[b"x"] * 20)
        got = empty = 0
        while got < 20 and empty < 60:
            answer = self.patiently(
                "Pull", subscription=subscription, max_messages=1, return_immediately=True
            )
            got += len(answer.received_messages)
            empty += not answer.received_messages
        return [
            Finding(
                "immediate pulls of one from a backlog of 20",
                None,
                "may be empty: an empty answer doesn't mean an empty queue",
                f"{got} messages, {empty} empty",
                twin="3 in 10 empty",
            )
        ]

    def _lease(self, seconds: int) -> list[Finding]:
        """Whether a leased message is withheld until its lease ends, or for as long as we watch."""
        topic, subscription = self.pair(f"lease-{seconds}", ack_deadline_seconds=seconds)
        self.publish(topic, b"x")
        what = f"a lease of {seconds} s"
        expected = "best effort: sometimes a message is redelivered early"
        twin = f"{seconds} s; 1 of 500 ends after a third"
        if not self.first(subscription, seconds):
            return [_nothing(what, expected, twin)]
        began = time.monotonic()
        watched = min(seconds + 2.0 * LEASE, max(self.seconds, 3.0 * LEASE))
        again: list[Any] = []
        while not again and time.monotonic() - began < watched:
            self.pause(min(1.0, seconds / 20))
            again = self.look(subscription, 1, seconds)
        took = time.monotonic() - began
        early = bool(again) and took < 0.7 * seconds
        late = not again and watched > seconds + LEASE
        return [
            Finding(
                what,
                not late and (None if early else True),
                expected,
                f"redelivered after {took:.1f} s" if again else f"kept for {took:.0f} s",
                "jobs must tolerate being started twice: base=ReliableTask" if early else "",
                twin=twin,
            )
        ]

    def _dead_letter(self) -> list[Finding]:
        dead_topic, dead = self.pair("dead")
        policy = {"dead_letter_topic": dead_topic, "max_delivery_attempts": 5}
        topic, subscription = self.pair("dying", dead_letter_policy=policy)
        self.publish(topic, b"x")
        until = time.monotonic() + min(self.seconds, 60) + 20
        deliveries = 0
        found: list[Any] = []
        while not found and time.monotonic() < until:
            received = self.look(subscription, 1)
            for item in received:
                deliveries = max(deliveries, item.delivery_attempt)
                self.patiently(
                    "ModifyAckDeadline",
                    subscription=subscription,
                    ack_ids=[item.ack_id],
                    ack_deadline_seconds=0,
                )
            if deliveries >= 5 or not received:
                found = self.look(dead, 1)
        what, expected, twin = (
            "the dead letter after 5 deliveries",
            "forwarded",
            "5 deliveries, forwarded",
        )
        if not deliveries and not found:
            return [_nothing(what, expected, twin)]
        return [
            Finding(
                what,
                bool(found),
                expected,
                f"{deliveries} deliveries, {'forwarded' if found else 'not forwarded'}",
                "" if found else f"grant {AGENT} publisher on dead letters, subscriber on queues",
                twin=twin,
            )
        ]

    def _filters(self) -> list[Finding]:
        topic = self.topic("filtered")
        subscriptions = [
            self.subscription(f"filter{n}", topic, filter=text)
            for n, (_, text, _, _) in enumerate(_FILTERS)
        ]
        self.await_(topic, *subscriptions)
        found = []
        for (what, text, hit, miss), subscription in zip(_FILTERS, subscriptions, strict=True):
            sent = {f"hit {what}".encode(): hit, f"miss {what}".encode(): miss}
            messages = [{"data": data, "attributes": each} for data, each in sent.items()]
            self.patiently("Publish", topic=topic, messages=messages)
            received = {item.message.data for item in self.look(subscription, 50)}
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
                    twin="hit" if text else "hit, miss",
                )
            )
        return found

    def _ordering(self) -> list[Finding]:
        topic = self.topic("ordered")
        self.publish(topic, b"x")
        messages = [{"data": b"x", "ordering_key": key} for key in "ab"]
        try:
            self.patiently("Publish", topic=topic, messages=messages)
        except CallFailed as exc:
            if isinstance(exc.advice, BrokerUnavailable):
                raise
            measured = exc.code().name
        else:
            measured = "accepted"
        what, refused = "two ordering keys in one request", "FAILED_PRECONDITION"
        return [Finding(what, None, "refused: none is ever made", measured, twin=refused)]

    def _late_acks(self) -> list[Finding]:
        what, expected = "exactly_once: an ack after the lease", "refused, with a reason"
        twin = "INVALID_ARGUMENT"
        topic, subscription = self.pair("once", enable_exactly_once_delivery=True)
        self.publish(topic, b"x")
        received = self.first(subscription)
        if not received:
            return [_nothing(what, expected, twin)]
        self.pause(LEASE + 2)
        try:
            self.ack(subscription, received)
        except CallFailed as exc:
            if isinstance(exc.advice, BrokerUnavailable):
                raise
            measured = exc.code().name
        else:
            measured = "accepted"
        return [
            Finding(
                what,
                measured != "accepted" or (None if self.options.lax else False),
                expected,
                measured,
                "" if measured != "accepted" else "don't rely on exactly_once here",
                twin=twin,
            )
        ]

    def _idle_stream(self) -> list[Finding]:
        topic, subscription = self.pair("idle")
        self.await_(topic, subscription)
        seconds = min(self.seconds, 360)
        ends: list[Any] = []
        until = time.monotonic() + SETTLES
        while True:
            began = time.monotonic()
            ends.clear()
            stream = open_stream(
                self.client,
                subscription,
                1,
                LEASE,
                on_response=lambda response: None,
                on_end=ends.append,
            )
            try:
                while not ends and time.monotonic() - began < seconds:
                    self.pause(0.05)
                over, after = bool(ends), time.monotonic() - began
            finally:
                if stream is not None:
                    stream.cancel()
            code = ends[0].code() if over and isinstance(ends[0], grpc.RpcError) else _Status.OK
            if code is not _Status.NOT_FOUND or time.monotonic() > until:
                break
        ended = f"ended after {after:.0f} s ({code.name})" if over else "still open"
        return [
            Finding(
                f"an idle stream with heartbeats, for {seconds:g} s",
                None,
                "closed from time to time: it is reopened at once",
                ended,
                twin="closed after 600 s, without heartbeats after 60",
            )
        ]


def _findings(name: str, check: Callable[[], list[Finding]]) -> Iterator[Finding]:
    try:
        yield from check()
    except (GwiError, grpc.RpcError) as exc:
        yield _failed(name, exc)


def _failed(what: str, exc: Exception) -> Finding:
    """For a check that could not be made to its end."""
    expected, twin = "calls succeed", "the same"
    if isinstance(exc, CallFailed):
        return Finding(what, False, expected, str(exc), str(exc.advice), twin)
    measured = told(exc) if isinstance(exc, grpc.RpcError) else str(exc)
    return Finding(what, False, expected, measured, "as it says", twin)


def _nothing(what: str, expected: str, twin: str) -> Finding:
    """For a check whose message didn't arrive, so that there was nothing to try."""
    measured = "nothing arrived: the message that was published for this was not delivered"
    return Finding(what, False, expected, measured, "run it again", twin)
