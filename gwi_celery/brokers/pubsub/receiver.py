"""A connection's receiver: which queues are read, and how the consumer learns of new messages.

Pulls and streams (see :mod:`.lines`) put what they bring into a queue's :class:`Arrivals`, on gRPC's
threads, and make a pipe readable, which wakes the event loop; the loop takes as many as it has room for.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING

from gwi_celery.brokers.base import Delivery, check_usable
from gwi_celery.brokers.pubsub import advice
from gwi_celery.brokers.pubsub.arrivals import Arrivals
from gwi_celery.brokers.pubsub.lines import Line
from gwi_celery.brokers.wakeups import local_bell
from gwi_celery.errors import BrokerUnusable, NotFound

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker


class PubSubReceiver:
    """A :class:`~gwi_celery.brokers.base.Receiver` on Pub/Sub. It stays with its process."""

    def __init__(self, broker: PubSubBroker) -> None:
        self._broker = broker
        self._pid = os.getpid()
        self._bell = local_bell()
        self._closed = False
        self._queues: dict[str, Arrivals] = {}
        #: Lines of queues that were left: what they still bring is given back.
        self._ending: list[Line] = []

    # --- the seam -----------------------------------------------------------------------------

    def subscribe(self, queue: str, *, bulk: bool = False) -> None:
        check_usable(self._closed, self._pid)
        if queue in self._queues:
            return
        topology = self._broker.topology
        sources = topology.sources(queue)
        for source in sources:
            endpoint = topology.admin.pushed.get(source.path)
            if endpoint is not None:
                raise BrokerUnusable(advice.pushed(queue, source.path, endpoint))
        topology.join(queue)
        arrivals = Arrivals(self, queue, bulk)
        arrivals.read_from(sources)
        self._queues[queue] = arrivals
        self.ring()

    def reads(self, queue: str) -> bool:
        return queue in self._queues

    def rebound(self, queue: str, *, again: bool = False) -> None:
        """The queue's bindings or settings may have changed; ``again``: it was just created."""
        arrivals = self._queues.get(queue)
        if arrivals is None:
            return
        # A deleted queue may be recreated by anybody: its lines retry from time to time.
        with contextlib.suppress(NotFound):
            arrivals.read_from(self._broker.topology.sources(queue))
            for line in arrivals.lines if again else ():
                line.retry_soon()
            self.ring()

    def unsubscribe(self, queue: str) -> None:
        check_usable(self._closed, self._pid)
        arrivals = self._queues.pop(queue, None)
        if arrivals is None:
            return
        arrivals.stop()
        self._ending = [line for line in [*self._ending, *arrivals.lines] if not line.idle()]
        self._broker.receivers.left(queue)

    def poll(self, queue: str, limit: int, *, room: int = 0, begun: bool = True) -> list[Delivery]:
        check_usable(self._closed, self._pid)
        arrivals = self._queues.get(queue)
        if arrivals is None:
            return self._broker.looks.in_turn(queue, limit)
        if arrivals.rediscovery_due():
            self._broker.receivers.rediscover(queue)
        return arrivals.take(limit, max(room, limit))

    def want(self, queue: str, limit: int) -> None:
        """There is room for ``limit`` messages: fetch that many, unless a call is in flight."""
        arrivals = self._queues.get(queue)
        if arrivals is not None:
            arrivals.want(limit)

    def return_unpolled(self, queue: str) -> None:
        arrivals = self._queues.get(queue)
        if arrivals is not None:
            arrivals.return_unpolled()

    def take_out(self, delivery: Delivery) -> bool:
        """Remove a waiting message, so that it is not handed out; False if it is not waiting here."""
        arrivals = self._queues.get(delivery.queue)
        return arrivals is not None and arrivals.take_out(delivery)

    def fileno(self) -> int:
        check_usable(self._closed, self._pid)
        return self._bell.fileno()

    def clear(self) -> None:
        check_usable(self._closed, self._pid)
        self._bell.clear()

    def next_due(self) -> float | None:
        check_usable(self._closed, self._pid)
        dues = [
            due for arrivals in self._queues.values() if (due := arrivals.next_due()) is not None
        ]
        return max(min(dues) - time.monotonic(), 0.0) if dues else None

    def close(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        queues, self._queues = self._queues, {}
        for arrivals in queues.values():
            arrivals.stop()
        # A call that ends by itself may still bring messages, which are then given back.
        began = time.monotonic()
        lines = [*self._ending, *(line for arrivals in queues.values() for line in arrivals.lines)]
        while any(
            not line.idle() and began + line.ends_within > time.monotonic() for line in lines
        ):
            time.sleep(0.005)
        for name in queues:
            self._broker.receivers.left(name)
        self._bell.close()

    # --- what lines use -----------------------------------------------------------------------

    @property
    def broker(self) -> PubSubBroker:
        return self._broker

    @property
    def closed(self) -> bool:
        return self._closed

    def ring(self) -> None:
        """Make :meth:`fileno` readable. Any thread may call this."""
        self._bell.ring()
