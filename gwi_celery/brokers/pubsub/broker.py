"""The broker seam on Pub/Sub: what each of its methods does there.

==================  ===============================================================================
publish             Publish, one RPC, confirmed; tried again while it fails for now
poll                what long pulls and streams have brought (see :mod:`.receiver`)
ack                 Acknowledge, batched in the background
nack                ModifyAckDeadline to the delay (to 0 with a retry policy: that decides then)
give back           Publish a copy, then Acknowledge: Pub/Sub would count ModifyAckDeadline as a
                    delivery. That it is, where nothing is counted
extend              ModifyAckDeadline
dead letter         Publish to the dead letter's topic, then Acknowledge
a delay             an attribute says when the message may be delivered. A consumer that gets it
                    earlier holds it for some seconds, or defers it: up to 600 s at a time
size                None: Pub/Sub itself can't tell; see :meth:`PubSubBroker.depth`
==================  ===============================================================================

What Pub/Sub counts are deliveries, for queues that have a dead letter. To make attempts of them, what
was no attempt leaves no trace in its count: a message given back untouched is published anew, and says
how many attempts there were before; what waiting for its time may have added is taken off. So a
delivery that is not the first follows one attempt each, or a worker that died holding the message.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

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
    dead_letter_queue,
)
from gwi_celery.brokers.pubsub import naming, wire
from gwi_celery.brokers.pubsub.acks import Acknowledger
from gwi_celery.brokers.pubsub.client import AckIdsRefused, Client, pb
from gwi_celery.brokers.pubsub.dead import DeadLetters, Looked, joined
from gwi_celery.brokers.pubsub.deliveries import Deliveries
from gwi_celery.brokers.pubsub.monitoring import Monitoring, QueueDepth
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.parked import Parked
from gwi_celery.brokers.pubsub.publisher import Publisher
from gwi_celery.brokers.pubsub.receiver import PubSubReceiver
from gwi_celery.brokers.pubsub.streams import look
from gwi_celery.brokers.pubsub.topology import Source, Topology
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    NotFound,
)
from gwi_celery.exits import at_exit

logger = logging.getLogger(__name__)

#: Messages in one peek into a queue.
_LOOK = 1000
#: Seconds that closing waits for what is still to be sent.
_CLOSE = 2.0
#: Seconds without further deletions of unused queues after one that Pub/Sub didn't answer.
_STALLED = 10.0


class PubSubBroker:
    """A :class:`~gwi_celery.brokers.base.Broker` on Google Cloud Pub/Sub, or its emulator.

    Over 25 methods, as the seam has them. It connects the parts that do the work: topology, publisher,
    deliveries, acks, dead letters and receivers.
    """

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self.operators: Operators | None = None
        self.client = Client(options)
        self._acks = Acknowledger(self.client)
        self._timers = Scheduler("gwi-timers")
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
        #: What came before its time, for operators.
        self.early, self.parked = self.deliveries.early, Parked(self)
        self._monitoring = Monitoring(options.timeout, options.endpoint if options.strict else "")
        self._receivers: weakref.WeakSet[PubSubReceiver] = weakref.WeakSet()
        #: Monotonic time until which unused queues are not deleted: they expire by themselves.
        self._stalled_until = 0.0
        #: Pub/Sub has answered this connection once.
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
        with contextlib.suppress(NotFound):  # an answer like any other
            self.client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)
        self._connected = True

    # --- exchanges, queues, bindings ------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        self.topology.declare_exchange(name, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        for queue in self.topology.delete_exchange(name, if_unused=if_unused):
            self._reread(queue)

    def has_exchange(self, name: str) -> bool:
        return self.topology.exchanges.type_of(name) is not None

    def declare_queue(self, spec: QueueSpec) -> None:
        if self.topology.declare_queue(spec):
            self._reread(spec.name, again=True)

    def delete_queue(self, name: str, *, if_unused: bool = False, if_empty: bool = False) -> None:
        self.topology.delete_queue(name, if_unused=if_unused, if_empty=if_empty)

    def has_queue(self, name: str) -> bool:
        return self.topology.has_queue(name)

    def bind(self, queue: str, exchange: str, routing_key: str) -> None:
        self.topology.bind(queue, exchange, routing_key)
        self._reread(queue)

    def unbind(self, queue: str, exchange: str, routing_key: str) -> None:
        self.topology.unbind(queue, exchange, routing_key)
        self._reread(queue)

    def bindings(self) -> list[Binding]:
        return self.topology.bindings()

    def queues(self) -> list[str]:
        return self.topology.queues()

    # --- publish --------------------------------------------------------------------------------

    def publish(
        self, exchange: str, routing_key: str, message: OutgoingMessage, *, merge: bool = False
    ) -> None:
        """As :meth:`Broker.publish`. Returns None: Pub/Sub doesn't tell how many queues it reached.

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
        receiver = PubSubReceiver(self)
        self._receivers.add(receiver)
        return receiver

    def receivers(self) -> list[PubSubReceiver]:
        return list(self._receivers)

    def leave(self, queue: str) -> None:
        """A receiver unsubscribed: an auto_delete queue is deleted with its last one."""
        if any(receiver.reads(queue) for receiver in self._receivers):
            return
        if time.monotonic() < self._stalled_until:
            return  # stopping must not wait for each
        try:
            with self.client.within(_CLOSE):
                self.topology.leave(queue)
        except BrokerError as exc:
            if isinstance(exc, BrokerUnavailable):
                self._stalled_until = time.monotonic() + _STALLED
            logger.info("queue %r was not deleted (%s): it expires by itself", queue, exc)

    def look(self, queue: str, limit: int) -> list[Delivery]:
        """Messages that are ready now, of a queue that no receiver of this connection reads."""
        try:
            sources = self.topology.sources(queue)
        except NotFound:
            return []
        self.flush(_CLOSE)  # so that messages given back just now are included
        found: list[Delivery] = []
        for source in sources:
            while len(found) < limit:
                received = self._pull_now(source, limit - len(found))
                ready, delayed = self.deliveries.sort(source, received)
                found += ready
                for due, delivery in delayed:
                    self.deliveries.release(delivery, due - time.monotonic())
                if not received:
                    break
        return sorted(found, key=lambda d: (-d.priority, d.published_at))

    def later(self, when: float, job: Callable[[], object]) -> None:
        """Call ``job``, which takes no time, in the background at a monotonic time."""
        self._timers.run(job, when)

    def rediscover(self, queue: str) -> None:
        """In the background, look for bindings that other connections made."""

        def job() -> None:
            with contextlib.suppress(BrokerError):  # tried again later
                self.topology.rediscover(queue)
                self._reread(queue)

        if self.options.managed:
            self._jobs.run(job)

    def recover(self, source: Source, then: Callable[[], None]) -> None:
        """In the background, recreate a subscription that is being read and was deleted."""

        def job() -> None:
            try:
                self.topology.recover(source)
                self._reread(source.queue)
            except BrokerError as exc:
                logger.warning("queue %r is gone and can't be recreated yet: %s", source.queue, exc)
            then()

        self._jobs.run(job)

    def _reread(self, queue: str, *, again: bool = False) -> None:
        """Have this connection's receivers read the queue's current subscriptions."""
        for receiver in self.receivers():
            receiver.rebound(queue, again=again)

    def _pull_now(self, source: Source, limit: int) -> list[Any]:
        try:
            if not self.options.lax:
                return look(
                    self.client, source.path, limit, self.topology.first_lease(source.queue)
                )
            request = pb["PullRequest"](
                subscription=source.path, max_messages=limit, return_immediately=True
            )
            return list(self.client.call("Pull", request, source.path).received_messages)
        except NotFound:
            self.topology.forget_queue(source.queue)
            return []

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
        elif delivery.queue == dead_letter_queue(delivery.queue.removesuffix(".dead")):
            # No dead letter has a dead letter; redelivered at once, it would keep its consumer busy.
            self.deliveries.release(delivery, delivery.lease_seconds)
        else:
            self._dead_letters.bury(delivery, reason, delivery.deliveries)

    def bury(self, delivery: Delivery, reason: str) -> None:
        self._dead_letters.keep(delivery, reason, delivery.deliveries)

    # --- for operators --------------------------------------------------------------------------

    def size(self, queue: str) -> QueueSize | None:
        """None: Pub/Sub has no exact count. As :meth:`Broker.size`; see :meth:`depth`."""
        try:
            self.topology.spec(queue)
        except NotFound:
            if queue.endswith(DEAD_LETTER_SUFFIX):
                return QueueSize(0, 0, 0)
            raise
        return None

    def depth(self, queue: str) -> QueueDepth | None:
        """The queue's depth some minutes ago, from Cloud Monitoring. Raises NotFound.

        None where it can't be known: on Google's emulator, without the extra ``monitoring``, without the
        permission, and before all of the queue's subscriptions have been measured.
        """
        if self.options.lax:
            return None
        return self._monitoring.depth(source.path for source in self.topology.sources(queue))

    def state(self, queue: str) -> QueueState:
        """What Cloud Monitoring has measured, some minutes ago, where that can be asked."""
        self.topology.spec(queue)
        waiting, dead = self.depth(queue), None
        with contextlib.suppress(NotFound):
            dead = self.depth(dead_letter_queue(queue))
        return QueueState(
            queue,
            ready=None if waiting is None else waiting.messages,
            oldest=None if waiting is None else waiting.oldest_age_seconds,
            dead=None if dead is None else dead.messages,
        )

    def purge(self, queue: str) -> int:
        """Ack ready messages until none is left; returns how many.

        Includes delayed messages that are delivered for the first time, but not deferred ones.
        """
        if self.operators is not None:
            self.operators.about_to("purge", queue)
        purged = 0
        self.flush(_CLOSE)
        for source in self.topology.sources(queue):
            while received := self._pull_now(source, _LOOK):
                request = pb["AcknowledgeRequest"](
                    subscription=source.path, ack_ids=[item.ack_id for item in received]
                )
                self._dead_letters.end(queue, received)
                with contextlib.suppress(AckIdsRefused):  # those that are lost are pulled once more
                    self.client.persist("Acknowledge", request, source.path)
                purged += sum(source.takes(wire.parse(item.message)) for item in received)
        return purged

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """Ready messages. They are leased for a moment and then given back."""
        deliveries = self.look(queue, limit)
        self.deliveries.give_back(deliveries)
        self.flush(_CLOSE)
        return [self._dead_letters.stored(d) for d in joined(deliveries)]

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
        self.topology.declare_queue(QueueSpec(queue))
        for source in self.topology.sources(queue):
            request = pb["ModifyPushConfigRequest"](subscription=source.path)
            request.push_config.push_endpoint = url
            if service_account:
                request.push_config.oidc_token.service_account_email = service_account
                request.push_config.oidc_token.audience = audience
            self.client.persist("ModifyPushConfig", request, source.path)
            self.topology.admin.note_push(source.path, url)

    def browse(self, queue: str) -> Iterator[StoredMessage]:
        """What is ready, leased for as long as it takes to see all of it, and then given back."""
        looked = Looked(self, queue)
        try:
            for _ in looked:
                pass
        finally:
            looked.give_back()
        yield from map(self._dead_letters.stored, joined(looked.held))

    def discard(self, queue: str, only: Collection[str]) -> int:
        if self.operators is not None:
            self.operators.about_to("purge", queue)
        return self._dead_letters.discard(queue, only)

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
        self.flush(_CLOSE)
        return total

    def flush(self, timeout: float = _CLOSE) -> bool:
        """Wait until acks and unconfirmed messages are with Pub/Sub; False if that took longer."""
        deadline = time.monotonic() + timeout
        self.publisher.wait(timeout)
        # A failed publish has become a background job, and a job may ack.
        done = self._jobs.flush(max(deadline - time.monotonic(), 0))
        return self._acks.flush(max(deadline - time.monotonic(), 0)) and done

    def close(self) -> None:
        for receiver in self.receivers():
            receiver.close()
        self._flush_at_end()
        self._jobs.stop(0.0)
        self._timers.stop(0.0)
        self._acks.stop(0.0)
        self._monitoring.close()
        self.client.close()

    def _flush_at_end(self) -> None:
        """Wait for unconfirmed messages as a confirmed publish would; for all else only briefly."""
        if self.publisher.unsettled():
            if not self.flush(self.options.publish_timeout):
                logger.error("unconfirmed messages may not have been published")
        else:
            self.flush(_CLOSE)

    def _after_fork(self) -> None:
        """Forget what is in flight, leased or received: it is the parent's."""
        self.publisher.after_fork()
        self.deliveries.after_fork()
        self._receivers = weakref.WeakSet()


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
