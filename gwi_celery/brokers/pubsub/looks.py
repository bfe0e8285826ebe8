"""What is ready in a queue at one moment, for callers that don't consume it: operators, single gets."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import grpc

from gwi_celery.backoff import jitter
from gwi_celery.brokers.base import Delivery
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.streams import ENDS_WITHIN, open_stream
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerUnavailable, NotFound

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

#: Seconds without a message after which a look ends.
_QUIET = 2.0
#: Share of a lease after which a look ends although more arrives, so that what it found can be settled.
_OF_LEASE = 0.5
#: Statuses with which a half-closed stream ends.
_HALF_CLOSED = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
#: Streams opened for one look, while failures are temporary.
_TRIES = 4
#: Seconds between two of them.
_PAUSE = 0.1


class Looks:
    """One broker's looks into queues that none of its receivers reads."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker

    def in_turn(self, queue: str, limit: int) -> list[Delivery]:
        """At most ``limit`` messages, most urgent first. Nothing is leased that isn't returned."""
        found: list[Delivery] = []
        for source in self._sources(queue):
            while (wanted := limit - len(found)) > 0:
                received, _ = self.pull(source, wanted)
                found += self._ready(source, received)
                if len(received) < wanted:
                    break
        return _by_urgency(found)

    def at_once(self, queue: str, limit: int) -> list[Delivery]:
        """At most ``limit`` messages of each subscription, all asked at once; most urgent first."""
        pulled = self.pull_all(self._sources(queue), limit)
        return _by_urgency(d for source, found, _ in pulled for d in self._ready(source, found))

    def pull_all(
        self, sources: Sequence[Source], limit: int
    ) -> list[tuple[Source, list[Any], bool]]:
        """As :meth:`pull`, of all at the same time: it takes seconds to be sure that one is empty."""
        if not sources:
            return []
        with ThreadPoolExecutor(len(sources), "gwi-look") as threads:
            pulled = threads.map(lambda source: self.pull(source, limit), sources)
            return [(source, *found) for source, found in zip(sources, pulled, strict=True)]

    def pull(self, source: Source, limit: int) -> tuple[list[Any], bool]:
        """What is ready, and whether there may be more."""
        topology, client = self._broker.topology, self._broker.client
        found: list[Any] = []
        try:
            if not self._broker.options.lax:
                return look(client, source.path, limit, topology.first_lease(source.queue))
            while len(found) < limit:
                request = pb["PullRequest"](
                    subscription=source.path,
                    max_messages=limit - len(found),
                    return_immediately=True,
                )
                received = client.call("Pull", request, source.path).received_messages
                if not received:
                    return found, False
                found += received
            return found, True
        except NotFound:
            topology.forget_queue(source.queue)
            return found, False

    def _sources(self, queue: str) -> list[Source]:
        try:
            sources = self._broker.topology.sources(queue)
        except NotFound:
            return []
        self._broker.flush()  # so that messages given back just now are included
        return sources

    def _ready(self, source: Source, received: list[Any]) -> list[Delivery]:
        deliveries = self._broker.deliveries
        ready, delayed = deliveries.sort(source, received)
        for due, delivery in delayed:
            deliveries.release(delivery, due - time.monotonic())
        return ready


def _by_urgency(deliveries: Iterable[Delivery]) -> list[Delivery]:
    return sorted(deliveries, key=lambda d: (-d.priority, d.published_at))


def look(client: Client, path: str, limit: int, lease: float) -> tuple[list[Any], bool]:
    """What is ready in a subscription, leased for ``lease`` seconds, and whether there may be more.

    ``limit`` messages at most. There is no more once a stream has brought nothing for two seconds; an
    immediate pull may be empty although there are messages. Raises as :meth:`Client.call`, temporary
    failures after some tries.
    """
    found: list[Any] = []
    until = time.monotonic() + lease * _OF_LEASE
    left = _TRIES
    while True:
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        stream = open_stream(
            client,
            path,
            limit - len(found),
            lease,
            on_response=answers.put,
            on_end=answers.put,
        )
        try:
            if stream is not None:  # no fork is under way
                return found, _gather(stream, answers, found, limit, until)
        except grpc.RpcError as exc:
            error = client.error(exc, "StreamingPull", path)
            left -= isinstance(error, BrokerUnavailable)
            settling = isinstance(error, NotFound) and client.settling(path)
            if not (settling or (isinstance(error, BrokerUnavailable) and left)):
                if found:
                    return found, True
                raise error from exc
        time.sleep(jitter(_PAUSE, 0.8, 1.2))


def _gather(
    stream: Any, answers: queue.SimpleQueue[Any], found: list[Any], limit: int, until: float
) -> bool:
    """Add to ``found`` what a stream brings; returns whether there may be more."""
    closing = more = False
    try:
        while True:
            left = until - time.monotonic()
            if not closing and (len(found) >= limit or left <= 0):
                closing = more = True
                stream.half_close()
            try:
                answer = answers.get(timeout=ENDS_WITHIN if closing else min(_QUIET, left))
            except queue.Empty:
                if closing:
                    return more
                if left > _QUIET:
                    closing = True
                    stream.half_close()  # what was already sent still arrives
                continue
            if isinstance(answer, Exception):
                ended = isinstance(answer, grpc.RpcError) and answer.code() in _HALF_CLOSED
                if closing and (ended or len(found) >= limit):
                    return more
                raise answer
            if answer is None:
                return more or not closing
            found += answer.received_messages
    finally:
        stream.cancel()
