"""Messages that have arrived for one queue, on gRPC's threads, until the event loop takes them."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gwi_celery import forks
from gwi_celery.brokers.base import Delivery
from gwi_celery.brokers.pubsub.lines import MOST, Line, Pull
from gwi_celery.brokers.pubsub.streams import Flow, Stream
from gwi_celery.brokers.pubsub.topology import Source

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.receiver import PubSubReceiver

#: Seconds that a message waits for a busy consumer to poll it; then it is given back.
#: Well under the shortest lease.
_LONGEST_WAIT = 5.0
#: Seconds between two looks for bindings that other connections made.
_REDISCOVER = 60.0


class Arrivals:
    """One queue's lines, and the messages they brought that nobody has taken yet.

    A message whose lease may have run out is not handed out. One that waits too long is given back,
    unless a stream brought it: the same stream would bring it again, so it stays until its redelivery
    replaces it.
    """

    def __init__(self, receiver: PubSubReceiver, queue: str, bulk: bool) -> None:
        self.receiver = receiver
        self.queue = queue
        self._bulk = bulk
        self._rediscover_at = time.monotonic() + _REDISCOVER
        self.lines: list[Line] = []
        self._lock = forks.lock()
        self._arrived: dict[Line, deque[Delivery]] = {}
        self._delayed: list[tuple[float, Delivery]] = []
        #: How many messages its consumer last asked for.
        self._room = 0
        #: Whether its consumer has no room, and so doesn't poll.
        self._full = False
        self._watched = False
        self._error: Exception | None = None
        self._stopped = False

    def read_from(self, sources: list[Source]) -> None:
        """Read from these subscriptions, most urgent first, and from no others."""
        # A bound queue's messages arrive through its bindings: its own subscription may be slow.
        bound = any(not source.own for source in sources)
        levels = sum(source.own for source in sources)
        with self._lock:
            if self._stopped:
                return
            known = {line.source.path: line for line in self.lines}
            lines = []
            for source in sources:
                line = known.pop(source.path, None)
                if line is None:
                    line = self._line(source, bound, levels)
                line.source = source
                lines.append(line)
            self.lines = lines
        for line in known.values():
            line.stop()

    def _line(self, source: Source, bound: bool, levels: int) -> Line:
        if self._bulk and not (bound and source.own):
            return Stream(self.receiver, self, source)
        if self.receiver.broker.options.lax or (source.own and levels > 1):
            return Pull(self.receiver, self, source, patient=self._bulk)
        return Flow(self.receiver, self, source)

    def rediscovery_due(self) -> bool:
        """Whether to look for other connections' bindings now; True once a minute at most."""
        now = time.monotonic()
        due = not self._bulk and now >= self._rediscover_at
        if due:
            self._rediscover_at = now + _REDISCOVER
        return due

    # The event loop's side.

    def take(self, limit: int, room: int) -> list[Delivery]:
        with self._lock:
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            taken: list[Delivery] = []
            now = time.monotonic()
            lapsed: list[Delivery] = []
            # Messages of a line that was unbound meanwhile still belong to the queue.
            unbound = [line for line in self._arrived if line not in self.lines]
            for line in [*self.lines, *unbound]:
                arrived = self._arrived.get(line)
                while arrived and len(taken) < limit:
                    delivery = arrived.popleft()
                    (taken if now < delivery.held_until() else lapsed).append(delivery)
                if not arrived:
                    self._arrived.pop(line, None)
            for item in [item for item in self._delayed if item[0] <= now]:
                if len(taken) < limit:
                    self._delayed.remove(item)
                    (taken if now < item[1].held_until() else lapsed).append(item[1])
            left = sum(map(len, self._arrived.values()))
        self.receiver.broker.deliveries.forget(lapsed)
        self.want(room - len(taken) - left)
        return taken

    def _drop(self, unwanted: Callable[[Delivery], bool]) -> list[Delivery]:
        """Remove the ``unwanted`` from what waits, and return them. The lock is held."""
        dropped = [d for arrived in self._arrived.values() for d in arrived if unwanted(d)]
        dropped += [d for _, d in self._delayed if unwanted(d)]
        if dropped:
            gone = {d.ack_id for d in dropped}
            for line, arrived in self._arrived.items():
                self._arrived[line] = deque(d for d in arrived if d.ack_id not in gone)
            self._delayed = [item for item in self._delayed if item[1].ack_id not in gone]
        return dropped

    def _watch(self) -> None:
        """Have waiting messages reviewed, also while the consumer is busy. The lock is held."""
        if not self._watched:
            self._watched = True
            self.receiver.broker.timers.run(self._review, time.monotonic() + _LONGEST_WAIT)

    def _review(self) -> None:
        now = time.monotonic()
        kept = {line.source.path for line in self.lines if line.keeps}

        def waits_for_long(delivery: Delivery) -> bool:
            return delivery.leased_at + _LONGEST_WAIT <= now and _path(delivery) not in kept

        with self._lock:
            self._watched = False
            lapsed = self._drop(lambda delivery: delivery.held_until() <= now)
            early = self._early(now)
            old = self._drop(lambda d: waits_for_long(d) and d.ack_id not in early)
            if any(self._arrived.values()) or self._delayed:
                self._watch()
        self.receiver.broker.deliveries.forget(lapsed)
        slow = {_path(delivery) for delivery in old}
        for line in self.lines:
            if line.source.path in slow:
                line.stop_fetching(unpolled=True)
        for delivery in old:
            self.receiver.broker.give_back(delivery)

    def _early(self, now: float) -> set[str]:
        """Ack ids of messages that are held until a later time. The lock is held."""
        return {delivery.ack_id for due, delivery in self._delayed if due > now}

    def want(self, limit: int) -> None:
        if self._stopped:
            return
        if limit <= 0:
            for line in self.lines:
                line.filled()
            return
        self._full = False
        self._room = limit = min(limit, MOST)
        levels = [line for line in self.lines if line.source.own]
        if len(levels) > 1:
            self._probe(levels, limit)
        else:
            self._fetch(limit)

    def _probe(self, levels: list[Line], limit: int) -> None:
        """By priority: ask the most urgent level, then the next; if all are empty, wait on all."""
        if any(line.probing for line in levels):
            return
        for line in levels:
            if line.probe(limit):
                return
        self._fetch(limit)

    def probed(self, line: Line, limit: int) -> None:
        """That level is empty now: ask the next."""
        if limit <= 0:
            return  # there is no room any more either
        levels = [other for other in self.lines if other.source.own]
        self._probe(levels[levels.index(line) + 1 :], limit)

    def _fetch(self, limit: int) -> None:
        now = time.monotonic()
        for line in self.lines:
            line.fetch(limit, now)

    def return_unpolled(self) -> None:
        """There is no room: give back what arrived, for other consumers, and fetch no more."""
        self._full = True
        with self._lock:
            unpolled = {line for line, arrived in self._arrived.items() if arrived}
        for line in self.lines:
            line.stop_fetching(unpolled=line in unpolled)
        with self._lock:
            early = self._early(time.monotonic())
            unwanted = self._drop(lambda delivery: delivery.ack_id not in early)
        for delivery in unwanted:
            self.receiver.broker.give_back(delivery)

    def take_out(self, delivery: Delivery) -> bool:
        """Remove a waiting message, so that it is not handed out; False if it is not waiting here."""
        with self._lock:
            return bool(self._drop(lambda waiting: waiting.ack_id == delivery.ack_id))

    def next_due(self) -> float | None:
        """Monotonic time of the next event that nothing announces; None: there is none."""
        with self._lock:
            dues = [due for due, _ in self._delayed]
        if not self._bulk and not self._full:
            dues.append(self._rediscover_at)
        dues += [due for line in self.lines if (due := line.due()) is not None]
        return min(dues, default=None)

    def stop(self) -> None:
        with self._lock:
            self._stopped = True
            left = [d for arrived in self._arrived.values() for d in arrived]
            left += [delivery for _, delivery in self._delayed]
            self._arrived, self._delayed = {}, []
        for line in self.lines:
            line.stop()
        for delivery in left:
            self.receiver.broker.give_back(delivery)

    # gRPC's threads' side.

    def arrived(self, line: Line, received: list[Any]) -> int:
        """Keep what a call brought; returns how many messages can be delivered now."""
        broker = self.receiver.broker
        ready, delayed = broker.deliveries.sort(line.source, received, line.lease)
        deferred: list[tuple[float, Delivery]] = []
        replaced: list[Delivery] = []
        with self._lock:
            stopped = self._stopped
            if not stopped:
                # Redelivered while it waits here: its earlier lease has run out.
                again = {(_path(d), d.message_id) for d in [*ready, *(d for _, d in delayed)]}
                replaced = self._drop(lambda d: (_path(d), d.message_id) in again)
                waiting = [*self._arrived.get(line, ()), *ready]
                if not broker.options.ordering:
                    # A subscription's messages are not ordered by priority.
                    waiting.sort(key=lambda delivery: -delivery.priority)
                self._arrived[line] = deque(waiting)
                # A held message takes a place: don't hoard what other consumers could take.
                room = max(self._room - len(self._delayed), 0)
                delayed, deferred = delayed[:room], delayed[room:]
                self._delayed += delayed
                if ready or delayed:
                    self._watch()
        if stopped:
            for delivery in [*ready, *(delivery for _, delivery in delayed)]:
                broker.give_back(delivery)
            return 0
        broker.deliveries.forget(replaced)
        for due, delivery in deferred:
            broker.deliveries.release(delivery, max(due - time.monotonic(), 0.0))
        if ready or delayed:
            self.receiver.ring()
        return len(ready)

    def failed(self, error: Exception) -> None:
        """Receiving has failed for good: the next poll raises the error."""
        with self._lock:
            self._error = error
        self.receiver.ring()


def _path(delivery: Delivery) -> str:
    """Path of the subscription that the delivery came by."""
    return delivery.ack_id.partition(" ")[0]
