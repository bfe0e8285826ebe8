"""The receivers of one connection, and what is done for them in the background."""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from gwi_celery.background import Scheduler
from gwi_celery.brokers.pubsub.receiver import PubSubReceiver
from gwi_celery.brokers.pubsub.topology import Source
from gwi_celery.errors import BrokerError, BrokerUnavailable, ConfigurationError

if TYPE_CHECKING:
    from gwi_celery.brokers.pubsub.broker import PubSubBroker

logger = logging.getLogger(__name__)

#: Seconds that deleting an unused queue may take.
_LEAVE = 2.0
#: Seconds without further deletions of unused queues after one that Pub/Sub didn't answer.
_STALLED = 10.0


class Receivers:
    """The receivers of one connection. ``jobs`` runs what calls Pub/Sub."""

    def __init__(self, broker: PubSubBroker, jobs: Scheduler) -> None:
        self._broker = broker
        self._jobs = jobs
        self.after_fork()

    def after_fork(self) -> None:
        """A child has none yet: they stay with the process that opened them."""
        self._open: weakref.WeakSet[PubSubReceiver] = weakref.WeakSet()
        #: Monotonic time until which unused queues are not deleted: they expire by themselves.
        self._stalled_until = 0.0

    def __iter__(self) -> Iterator[PubSubReceiver]:
        return iter(list(self._open))

    def open(self) -> PubSubReceiver:
        receiver = PubSubReceiver(self._broker)
        self._open.add(receiver)
        return receiver

    def reread(self, queue: str, *, again: bool = False) -> None:
        """Have each read the queue's current subscriptions; ``again``: it was just created."""
        for receiver in self:
            receiver.rebound(queue, again=again)

    def left(self, queue: str) -> None:
        """One unsubscribed: an auto_delete queue is deleted with its last receiver."""
        if any(receiver.reads(queue) for receiver in self):
            return
        if time.monotonic() < self._stalled_until:
            return  # stopping must not wait for each of them
        try:
            with self._broker.client.within(_LEAVE):
                self._broker.topology.leave(queue)
        except BrokerError as exc:
            if isinstance(exc, BrokerUnavailable):
                self._stalled_until = time.monotonic() + _STALLED
            logger.info("queue %r was not deleted (%s): it expires by itself", queue, exc)

    def rediscover(self, queue: str) -> None:
        """In the background, look for bindings that other connections made."""

        def job() -> None:
            with contextlib.suppress(BrokerError):  # tried again later
                self._broker.topology.rediscover(queue)
                self.reread(queue)

        if self._broker.options.managed:
            self._jobs.run(job)

    def recover(self, source: Source, then: Callable[[], None]) -> None:
        """In the background, recreate a subscription that is being read and was deleted.

        ``then`` is called afterwards, whether that worked or not.
        """

        def job() -> None:
            try:
                self._broker.topology.recover(source)
                self.reread(source.queue)
            except (BrokerError, ConfigurationError) as exc:
                logger.warning("queue %r is gone and can't be recreated yet: %s", source.queue, exc)
            then()

        self._jobs.run(job)
