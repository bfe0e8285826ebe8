"""The broker seam on Pub/Sub: what each of its methods does there.

==================  ===============================================================================
publish             Publish, one RPC, confirmed; retried while failures are temporary
poll                what long pulls and streams have brought (see :mod:`.receiver`)
ack                 Acknowledge, batched in the background
nack                ModifyAckDeadline to the delay (to 0 with a retry policy: that decides then)
give back           Publish a copy, then Acknowledge, because Pub/Sub would count a
                    ModifyAckDeadline to 0 as a delivery. That is used where nothing is counted
extend              ModifyAckDeadline
dead letter         Publish to the dead letter's topic, then Acknowledge
a delay             an attribute says when the message may be delivered. A consumer that gets it
                    earlier holds it for some seconds, or defers it: up to 600 s at a time
size                None: Pub/Sub itself can't tell; see :meth:`PubSubBroker.depth`
==================  ===============================================================================

Pub/Sub counts deliveries, for queues that have a dead letter; the seam counts attempts. So a delivery
that was no attempt must leave no trace in Pub/Sub's count: a message given back untouched is republished
with the number of its attempts so far, and deliveries that only waited for an ETA are subtracted.
Each delivery after the first then follows an attempt, or a worker that died holding the message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence

from gwi_celery.background import Scheduler
from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    Binding,
    Delivery,
    Operators,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    QueueState,
    StoredMessage,
)
from gwi_celery.brokers.pubsub import naming
from gwi_celery.brokers.pubsub.acks import Acknowledger
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.dead import DeadLetters
from gwi_celery.brokers.pubsub.deliveries import Deliveries
from gwi_celery.brokers.pubsub.looks import Looks
from gwi_celery.brokers.pubsub.monitoring import QueueDepth
from gwi_celery.brokers.pubsub.operating import Operating
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.parked import Parked
from gwi_celery.brokers.pubsub.publisher import Publisher
from gwi_celery.brokers.pubsub.receiver import PubSubReceiver
from gwi_celery.brokers.pubsub.receivers import Receivers
from gwi_celery.brokers.pubsub.topology import Topology
from gwi_celery.errors import NotFound
from gwi_celery.exits import at_exit

logger = logging.getLogger(__name__)

#: Seconds that a flush waits for what is still to be sent.
_FLUSH = 2.0


class PubSubBroker:
    """A :class:`~gwi_celery.brokers.base.Broker` on Google Cloud Pub/Sub, or its emulator.

    Over 25 methods, as the seam has 30: most are one line that calls the part that does the work.
    The parts are topology, publisher, receivers, deliveries, acks, dead letters, looks and operating.
    """

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self.operators: Operators | None = None
        self.client = Client(options)
        self._acks = Acknowledger(self.client)
        #: Runs what takes no time.
        self.timers = Scheduler("gwi-timers")
        self._jobs = Scheduler("gwi-jobs")
        self.topology = Topology(self.client, options, self._jobs)
        self.lease_seconds = options.lease_seconds
        self.publisher = Publisher(self.client, options, self.topology, self._jobs)
        self._dead_letters = DeadLetters(self)
        self.deliveries = Deliveries(
            self.client,
            options,
            self.topology,
            self.publisher,
            self._acks,
            self._jobs,
            self._dead_letters.bury,
        )
        #: Messages that arrived before their ETA, for operators.
        self.early, self.parked = self.deliveries.early, Parked(self)
        self.looks = Looks(self)
        self.receivers = Receivers(self, self._jobs)
        self.operating = Operating(self, self._dead_letters)
        #: Whether Pub/Sub has answered this connection once.
        self._connected = False
        _brokers.add(self)

    @property
    def dead_kept(self) -> float:
        return self.topology.desired.dead_kept

    def connect(self) -> None:
        if not self.options.managed:
            self.client.ready(self.options.timeout)  # an RPC would need one more role
            return
        if self._connected:
            self.topology.admin.ping()
            return
        id = naming.temporary_topic_id(self.options.prefix)
        path = f"projects/{self.options.project}/topics/{id}"
        with contextlib.suppress(NotFound):  # that is an answer too
            self.client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)
        self._connected = True

    # --- exchanges, queues, bindings ------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        self.topology.declare_exchange(name, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        for queue in self.topology.delete_exchange(name, if_unused=if_unused):
            self.receivers.reread(queue)

    def has_exchange(self, name: str) -> bool:
        return self.topology.exchanges.type_of(name) is not None

    def declare_queue(self, spec: QueueSpec) -> None:
        if self.topology.declare_queue(spec):
            self.receivers.reread(spec.name, again=True)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        self.topology.delete_queue(name, if_unused=if_unused, if_empty=if_empty)

    def has_queue(self, name: str) -> bool:
        return self.topology.has_queue(name)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        self.topology.bind(queue, exchange, routing_key)
        self.receivers.reread(queue)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        self.topology.unbind(queue, exchange, routing_key)
        self.receivers.reread(queue)

    def bindings(self) -> list[Binding]:
        return self.topology.bindings()

    def queues(self) -> list[str]:
        return self.topology.queues()

    # --- publish --------------------------------------------------------------------------------

    def publish(
        self, exchange: str, routing_key: str, message: OutgoingMessage, *, merge: bool = False
    ) -> None:
        """As :meth:`Broker.publish`, but returns None: how many queues it reached is unknown.

        ``merge``: a foreign message, which may have any number of attributes.

        Raises TooLarge over 10 MB, with both sizes, and BrokerUnavailable after
        ``publish_timeout`` seconds.
        """
        self.publisher.publish(exchange, routing_key, message, merge=merge)

    def publish_many(self, messages: Sequence[tuple[str, str, OutgoingMessage]]) -> list[None]:
        """Publish all of them, many at a time. Raises PublishFailed with an error for each failure."""
        return self.publisher.publish_many(messages)

    # --- receive --------------------------------------------------------------------------------

    def receiver(self) -> PubSubReceiver:
        return self.receivers.open()

    # --- leases ---------------------------------------------------------------------------------

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Sent in the background, with retries while the lease lasts. A lost lease isn't reported."""
        self.deliveries.ack(deliveries)
        return []

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        self.deliveries.release(delivery, 0.0 if self.options.retry_policy is not None else delay)

    def begin(self, delivery: Delivery) -> None:
        """Nothing to do: Pub/Sub counts each delivery that isn't given back."""

    def give_back(self, delivery: Delivery) -> None:
        self.deliveries.give_back([delivery])

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        return self.deliveries.extend(deliveries, seconds)

    # --- dead letters ---------------------------------------------------------------------------

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        spec = self.topology.spec(delivery.queue)
        if spec.temporary:
            self.ack([delivery])
        elif delivery.queue.endswith(DEAD_LETTER_SUFFIX):
            # No dead letter has a dead letter; redelivered at once, it would keep its consumer busy.
            self.deliveries.release(delivery, delivery.lease_seconds)
        else:
            self._dead_letters.bury(delivery, reason, delivery.deliveries)

    def bury(self, delivery: Delivery, reason: str) -> None:
        self._dead_letters.keep(delivery, reason, delivery.deliveries)

    # --- for operators --------------------------------------------------------------------------

    def size(self, queue: str) -> QueueSize | None:
        """None: Pub/Sub has no exact count. As :meth:`Broker.size`; see :meth:`depth`."""
        return self.operating.size(queue)

    def depth(self, queue: str) -> QueueDepth | None:
        """The queue's depth some minutes ago, from Cloud Monitoring. Raises NotFound.

        None where it can't be known: on Google's emulator, without the extra ``monitoring``, without the
        permission, and before all of the queue's subscriptions have been measured.
        """
        return self.operating.depth(queue)

    def state(self, queue: str) -> QueueState:
        return self.operating.state(queue)

    def purge(self, queue: str) -> int:
        return self.operating.purge(queue)

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        return self.operating.peek(queue, limit)

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        return self.operating.browse(queue)

    def discard(self, queue: str, only: Collection[str]) -> int:
        return self.operating.discard(queue, only)

    def redrive(
        self,
        queue: str,
        limit: int | None = None,
        *,
        only: Collection[str] | None = None,
        from_step: str | None = "",
        moved: Callable[[int], object] = lambda n: None,
    ) -> int:
        total = self._dead_letters.redrive(queue, limit, only, from_step, moved)
        self.flush()
        return total

    def push_to(
        self, queue: str, url: str, *, service_account: str = "", audience: str = ""
    ) -> None:
        """Have Pub/Sub post the queue's messages to ``url``; empty: back to pulling.

        Args:
            queue: Created if it doesn't exist.
            url: Of the push service's ``/push``.
            service_account: Account whose OIDC token each request carries; empty: no token.
            audience: Audience of that token; empty: the URL.
        """
        self.operating.push_to(queue, url, service_account, audience)

    # --- ends -----------------------------------------------------------------------------------

    def flush(self, timeout: float = _FLUSH) -> bool:
        """Wait until Pub/Sub has the acks and unconfirmed messages; False if that takes longer."""
        deadline = time.monotonic() + timeout
        self.publisher.wait(timeout)
        # A failed publish has become a background job, and a job may ack.
        done = self._jobs.flush(max(deadline - time.monotonic(), 0))
        return self._acks.flush(max(deadline - time.monotonic(), 0)) and done

    def close(self) -> None:
        for receiver in self.receivers:
            receiver.close()
        self._flush_at_end()
        self._jobs.stop(0.0)
        self.timers.stop(0.0)
        self._acks.stop(0.0)
        self.operating.close()
        self.client.close()

    def _flush_at_end(self) -> None:
        """Wait for unconfirmed messages as long as a confirmed publish would; for all else briefly."""
        if self.publisher.unsettled():
            if not self.flush(self.options.publish_timeout):
                logger.error("unconfirmed messages may not have been published")
        else:
            self.flush()

    def _after_fork(self) -> None:
        """Forget what is in flight, leased or received: it is the parent's."""
        self.publisher.after_fork()
        self.deliveries.after_fork()
        self.receivers.after_fork()


#: This process's brokers.
_brokers: weakref.WeakSet[PubSubBroker] = weakref.WeakSet()


def _in_child() -> None:
    for broker in list(_brokers):
        broker._after_fork()


os.register_at_fork(after_in_child=_in_child)


def _flush_all() -> None:
    """Send the acks and unconfirmed messages of brokers that nobody closed."""
    for broker in list(_brokers):
        broker._flush_at_end()


at_exit(_flush_all)
