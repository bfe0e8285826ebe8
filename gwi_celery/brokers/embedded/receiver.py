"""Who consumes from an embedded broker, and how it is woken."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable

from gwi_celery.brokers.base import Delivery, check_usable
from gwi_celery.brokers.embedded import messages, tables
from gwi_celery.brokers.embedded.deliveries import Deliveries
from gwi_celery.brokers.embedded.files import Files
from gwi_celery.brokers.wakeups import Bell
from gwi_celery.errors import BrokerError


class EmbeddedReceiver:
    """A :class:`~gwi_celery.brokers.base.Receiver`. It stays with the process that made it.

    A fork's child has a closed copy: closing it does nothing, using it raises BrokerUnusable.
    """

    def __init__(self, files: Files, deliveries: Deliveries, bell: Bell) -> None:
        self._files = files
        self._deliveries = deliveries
        self._bell = bell
        #: Queue -> the time up to which its consumer knows of messages that became due.
        self._queues: dict[str, float] = {}
        #: Queues whose last poll gave all that was asked for.
        self._busy: set[str] = set()
        self._pid = os.getpid()
        self._closed = False

    def subscribe(self, queue: str, *, bulk: bool = False) -> None:
        check_usable(self._closed, self._pid)
        files = self._files
        with files.database.write(durable=False) as c:
            files.find(c, queue)
            tables.add_listener(c, queue, self._bell.name)
        self._queues.setdefault(queue, -math.inf)
        self._bell.ring()  # there may be messages from before anyone could wake us

    def unsubscribe(self, queue: str) -> None:
        check_usable(self._closed, self._pid)
        if queue in self._queues:
            self._leave([queue])
            del self._queues[queue]

    def poll(self, queue: str, limit: int, *, room: int = 0, begun: bool = True) -> list[Delivery]:
        check_usable(self._closed, self._pid)
        now = self._files.clock.time()
        deliveries = self._deliveries.poll(queue, limit, busy=queue in self._busy, begun=begun)
        if limit and len(deliveries) == limit:
            self._busy.add(queue)
        else:
            self._busy.discard(queue)
        if queue in self._queues:
            self._queues[queue] = now
        return deliveries

    def want(self, queue: str, limit: int) -> None:
        """Nothing to do: a poll finds what there is."""

    def return_unpolled(self, queue: str) -> None:
        """Nothing to do: only a poll leases."""

    def fileno(self) -> int:
        check_usable(self._closed, self._pid)
        return self._bell.fileno()

    def clear(self) -> None:
        check_usable(self._closed, self._pid)
        self._bell.clear()

    def next_due(self) -> float | None:
        """Seconds until a poll may find something although nobody wakes us. Call it after polling.

        A message that can be polled already is announced once at most, so that a consumer without room
        for it is not called again and again. At most half a minute, as a publisher may have been killed
        before it could wake us.
        """
        check_usable(self._closed, self._pid)
        files = self._files
        files.sweep_if_due()
        now = files.clock.time()
        waits = []
        if self._queues and self._bell.interval is not None:
            waits.append(self._bell.interval)
        with files.database.read() as c:
            for name, known in self._queues.items():
                queue = tables.find_queue(c, name, now)
                due = None if queue is None else messages.first_due(c, queue, min(known, now))
                if due is not None:
                    waits.append(max(due - now, 0.0))
                    self._queues[name] = now
        return min(waits, default=None)

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        try:
            # If this fails, others find the bell dead.
            with contextlib.suppress(BrokerError):
                if self._queues:
                    self._leave(self._queues)
        finally:
            self._queues = {}
            self._bell.close()
            self._files.wakeups.remove(self._bell.name)

    def _leave(self, queues: Iterable[str]) -> None:
        """End these subscriptions, and those of dead receivers, which must not keep a queue."""
        files = self._files
        with files.database.read() as c:
            others = {bell for queue in queues for bell in tables.listeners(c, queue)}
        others.discard(self._bell.name)
        dead = files.dead(others)
        with files.database.write(durable=False) as c:
            for bell in dead:
                tables.drop_bell(c, bell, files.clock.time())
            for queue in queues:
                tables.drop_listener(c, queue, self._bell.name, files.clock.time())
        for bell in dead:
            files.wakeups.remove(bell)

    def refresh(self) -> None:
        if not self._closed and os.getpid() == self._pid:
            self._files.wakeups.refresh(self._bell)
