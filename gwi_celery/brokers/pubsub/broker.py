"""The broker seam on Pub/Sub: what each of its verbs is there.

==================  ===============================================================================
publish             Publish, one RPC, confirmed; tried again while it fails for now
poll                what long pulls and streams have brought (see :mod:`.receiver`)
ack                 Acknowledge, batched in the background
nack                ModifyAckDeadline to the delay (to 0 with a retry policy: that decides then)
give back           Publish a copy, then Acknowledge: Pub/Sub would count ModifyAckDeadline as a
                    delivery. That it is, where nothing is counted
extend              ModifyAckDeadline
dead letter         Publish to the dead letter's topic, then Acknowledge
a delay             the message says when it may be delivered. Whoever gets it before holds it for
                    some seconds, or leaves it leased to nobody until then, up to 600 s at a time
size                None: Pub/Sub itself can't say; see :meth:`PubSubBroker.depth`
==================  ===============================================================================

What Pub/Sub counts are deliveries, for queues that have a dead letter. To make attempts of them, what
was no attempt leaves no trace in its count: a message given back untouched is published anew, and says
how many attempts there were before; what waiting for its time may have added is taken off. So a
delivery that is not the first follows one attempt each, or a worker that died holding the message.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gwi_celery.brokers.base import (
    DEAD_LETTER_SUFFIX,
    DEATH_DELIVERIES,
    DEATH_REASON,
    Binding,
    Delivery,
    OutgoingMessage,
    QueueSize,
    QueueSpec,
    StoredMessage,
    dead_letter_queue,
)
from gwi_celery.brokers.pubsub import naming, wire
from gwi_celery.brokers.pubsub.acks import Acknowledger, fitting
from gwi_celery.brokers.pubsub.background import Background
from gwi_celery.brokers.pubsub.client import Client, pb
from gwi_celery.brokers.pubsub.dead import DeadLetters, joined
from gwi_celery.brokers.pubsub.monitoring import Monitoring, QueueDepth
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.publisher import Publisher, chunks
from gwi_celery.brokers.pubsub.receiver import PubSubReceiver
from gwi_celery.brokers.pubsub.topology import Source, Topology
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnusable,
    NotFound,
    TooLarge,
)
from gwi_celery.exits import at_exit
from gwi_celery.text import REASON_BYTES, cut

logger = logging.getLogger(__name__)

#: Seconds that a message which comes too early is held rather than parked.
_HOLD = 4.0
#: Seconds: Pub/Sub's longest ack deadline, and so the longest a message is parked at a time.
_PARK = 600.0
#: Deliveries after which a parked message is published anew, so that waiting is not counted as failing.
_PARKINGS = 5
#: Seconds for which another reader's message is left to it.
_SPARE = 1.0
#: Messages in one look into a queue.
_LOOK = 1000
#: Seconds that closing waits for what is still to be sent.
_CLOSE = 2.0
#: Seconds for which queues that were left are not deleted once Pub/Sub didn't answer to that.
_STALLED = 10.0


@dataclass(frozen=True)
class _Delivery(Delivery):
    """What is known of one of ours besides."""

    #: Seconds since the epoch after which it is dropped.
    expires: float = math.inf
    #: Whether Pub/Sub counts how often it is delivered.
    counted: bool = False


class PubSubBroker:
    """A :class:`~gwi_celery.brokers.base.Broker` on Google Cloud Pub/Sub, or its emulator."""

    def __init__(self, options: PubSubOptions) -> None:
        self.options = options
        self.client = Client(options)
        self._acks = Acknowledger(self.client)
        self._jobs = Background()
        self.topology = Topology(self.client, options, self._run_at)
        self.lease_seconds = options.lease_seconds
        self.publisher = Publisher(self.client, options, self.topology, self._jobs)
        self._dead_letters = DeadLetters(self)
        self._monitoring = Monitoring(options.timeout)
        self._receivers: weakref.WeakSet[PubSubReceiver] = weakref.WeakSet()
        #: ack id -> monotonic time at which its lease runs out.
        self._leases: dict[str, float] = {}
        #: Monotonic time up to which queues that were left are not deleted: they expire by themselves.
        self._stalled_until = 0.0
        _brokers.add(self)

    def connect(self) -> None:
        if not self.options.managed:
            self.client.ready(self.options.timeout)  # any RPC would need a role of its own
            return
        id = naming.temporary_topic_id(self.options.prefix)
        path = f"projects/{self.options.project}/topics/{id}"
        with contextlib.suppress(NotFound):  # an answer like any other
            self.client.call("GetTopic", pb["GetTopicRequest"](topic=path), path)

    # --- exchanges, queues, bindings ------------------------------------------------------------

    def declare_exchange(self, name: str, type: str) -> None:
        self.topology.declare_exchange(name, type)

    def delete_exchange(self, name: str, *, if_unused: bool = False) -> None:
        for queue in self.topology.delete_exchange(name, if_unused=if_unused):
            self._reread(queue)

    def has_exchange(self, name: str) -> bool:
        return self.topology.exchange_type(name) is not None

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
        """As :meth:`Broker.publish`. None: how many queues it reaches is Pub/Sub's business.

        ``merge``: somebody else's message, with any number of attributes.

        Raises TooLarge over 10 MB, with both sizes, and BrokerUnavailable after
        ``publish_timeout`` seconds.
        """
        self.publisher.publish(exchange, routing_key, message, merge=merge)

    def publish_many(self, messages: Sequence[tuple[str, str, OutgoingMessage]]) -> list[None]:
        """Publish all of them, many at a time. Raises PublishFailed with an error for each failed."""
        return self.publisher.publish_many(messages)

    # --- receive --------------------------------------------------------------------------------

    def receiver(self) -> PubSubReceiver:
        receiver = PubSubReceiver(self)
        self._receivers.add(receiver)
        return receiver

    def leave(self, queue: str) -> None:
        """A receiver of ours ended its subscription: an auto_delete queue goes with its last one."""
        if any(receiver.reads(queue) for receiver in self._receivers):
            return
        if time.monotonic() < self._stalled_until:
            return  # a stop must not wait for each
        try:
            with self.client.within(_CLOSE):
                self.topology.leave(queue)
        except BrokerError as exc:
            if isinstance(exc, BrokerUnavailable):
                self._stalled_until = time.monotonic() + _STALLED
            logger.info("queue %r was not deleted (%s): it expires by itself", queue, exc)

    def look(self, queue: str, limit: int) -> list[Delivery]:
        """What is there now, by calls that don't wait. For a queue without a subscription of ours."""
        try:
            sources = self.topology.sources(queue)
        except NotFound:
            return []
        self.flush(_CLOSE)  # what was handed back just now is there, too
        found: list[Delivery] = []
        for source in sources:
            while len(found) < limit:
                received = self._pull_now(source, limit - len(found))
                ready, delayed = self.sort(source, received)
                found += ready
                for due, delivery in delayed:
                    self._release(delivery, due - time.monotonic())
                if not received:
                    break
        return sorted(found, key=lambda d: (-d.priority, d.published_at))

    def later(self, when: float, job: Callable[[], object]) -> None:
        """Call ``job``, which takes no time, in the background at a monotonic time."""
        self._acks.run_at(when, job)

    def _run_at(self, when: float, job: Callable[[], object]) -> None:
        """As :meth:`later`, for what may take time."""
        self.later(when, functools.partial(self._jobs.run, job))

    def rediscover(self, queue: str) -> None:
        """In the background, look for bindings that other connections made."""

        def job() -> None:
            with contextlib.suppress(BrokerError):  # it is looked again
                self.topology.rediscover(queue)
                self._reread(queue)

        if self.options.managed:
            self._jobs.run(job)

    def recover(self, source: Source, then: Callable[[], None]) -> None:
        """In the background: a subscription that is read from is gone, and so is what it was for."""

        def job() -> None:
            try:
                self.topology.recover(source)
                self._reread(source.queue)
            except BrokerError as exc:
                logger.warning(
                    "queue %r is gone and can't be made again yet: %s", source.queue, exc
                )
            then()

        self._jobs.run(job)

    def _reread(self, queue: str, *, again: bool = False) -> None:
        """Receivers of ours read from what the queue consists of now."""
        for receiver in list(self._receivers):
            receiver.rebound(queue, again=again)

    def _pull_now(self, source: Source, limit: int) -> list[Any]:
        request = pb["PullRequest"](
            subscription=source.path, max_messages=limit, return_immediately=True
        )
        try:
            response = self.client.call("Pull", request, source.path)
        except NotFound:
            self.topology.forget_queue(source.queue)
            return []
        return list(response.received_messages)

    def sort(
        self, source: Source, received: Iterable[Any], lease: float | None = None
    ) -> tuple[list[Delivery], list[tuple[float, Delivery]]]:
        """Of what came: deliveries, and those to hold until a monotonic time.

        ``lease``: seconds that they are leased for, where that isn't the subscription's ack deadline.

        Everything else is dealt with here: what is not for this queue or has expired is acked, what
        was delivered too often is buried, and what comes long before its time is parked.
        """
        ready: list[Delivery] = []
        held: list[tuple[float, Delivery]] = []
        now, wall = time.monotonic(), time.time()
        spec = self.topology.spec(source.queue)
        lease = lease or self.topology.desired.first_lease(spec)
        limit = self.topology.desired.max_deliveries(spec)
        for item in received:
            parsed = wire.parse(item.message)
            delivery = self._delivery(source, item, parsed, lease, now)
            # A queue's time to live is that of waiting for a worker, not of waiting for its time.
            age = wall - max(delivery.published_at, parsed.not_before)
            late = source.message_ttl is not None and age > source.message_ttl
            if (
                not source.takes(parsed)
                or parsed.expires <= wall
                or late
                or (delivery.published_at < source.since and wall >= source.spared_until)
            ):
                self.ack([delivery])
            elif delivery.published_at < source.since:
                # Of a reader who was killed, or of one who is still there and may have it.
                self._release(delivery, _SPARE)
            elif parsed.not_before > wall:
                wait = parsed.not_before - wall
                if wait <= _HOLD:
                    held.append((now + wait, delivery))
                elif item.delivery_attempt >= _PARKINGS:
                    job = functools.partial(self._publish_anew, [delivery], parsed.not_before)
                    self._if_ours(delivery, job)
                else:
                    self._release(delivery, wait)
            elif 0 < limit <= delivery.attempts and not spec.temporary:
                reason = f"delivered {limit} times without an ack"
                self._if_ours(
                    delivery, functools.partial(self._try_to_bury, delivery, reason, limit)
                )
            else:
                ready.append(delivery)
        return ready, held

    def _delivery(
        self, source: Source, item: Any, parsed: wire.Received, lease: float, now: float
    ) -> _Delivery:
        ack_id = f"{source.path} {item.ack_id}"
        self._leases[ack_id] = now + lease
        attributes = parsed.attributes
        forwarded = attributes.pop(wire.FORWARDED_COUNT, None)
        if forwarded is not None and DEATH_REASON not in attributes:
            attributes[DEATH_REASON] = f"delivered {forwarded} times without an ack"
            attributes[DEATH_DELIVERIES] = forwarded
        published_at = wire.timestamp(item.message.publish_time)
        attempts = parsed.attempts + max(
            item.delivery_attempt - 1 - _parkings(parsed.not_before - published_at), 0
        )
        expires = parsed.expires
        if source.message_ttl is not None:
            expires = min(expires, max(published_at, parsed.not_before) + source.message_ttl)
        return _Delivery(
            queue=source.queue,
            ack_id=ack_id,
            message_id=item.message.message_id,
            data=item.message.data,
            attributes=attributes,
            deliveries=attempts + 1,
            published_at=published_at,
            priority=parsed.priority,
            lease_seconds=lease,
            leased_at=now,
            attempts=attempts,
            expires=expires,
            counted=item.delivery_attempt > 0,
        )

    def _if_ours(self, delivery: Delivery, job: Callable[[], object]) -> None:
        """Settle it in the background, unless its lease may be over when its turn comes."""

        def settle() -> None:
            if time.monotonic() < delivery.held_until():
                job()
            else:
                self.forget([delivery])

        self._jobs.run(settle)

    def _publish_anew(self, deliveries: Sequence[_Delivery], not_before: float = 0.0) -> None:
        """Have copies of a queue's messages delivered instead, for which Pub/Sub counts from 1."""
        now = time.time()
        due = max(not_before, now)
        copies = []
        for delivery in deliveries:
            ttl = None if delivery.expires == math.inf else max(delivery.expires - due, 0.001)
            message = OutgoingMessage(
                delivery.data, delivery.attributes, delivery.priority, delay=due - now, ttl=ttl
            )
            copies.append(
                self.publisher.made(
                    "", delivery.queue, message, merge=True, attempts=delivery.attempts
                )
            )
        # To this queue alone, whatever brought it.
        topic = self.topology.route("", deliveries[0].queue)
        for chunk in chunks(list(enumerate(copies))):
            self.publisher.send(topic, [made for _, made in chunk])
            self.ack([deliveries[n] for n, _ in chunk])

    # --- leases ---------------------------------------------------------------------------------

    def ack(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """Sent in the background, again and again while the lease lasts. What is lost isn't told."""
        for delivery in deliveries:
            subscription, ack_id = _parts(delivery)
            until = self._leases.pop(delivery.ack_id, 0.0)
            self._acks.ack(subscription, ack_id, until)
        return []

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Their leases are over, or may be: they are redelivered, and nobody is given them here."""
        for delivery in deliveries:
            self._leases.pop(delivery.ack_id, None)

    def park(self, delivery: Delivery, seconds: float) -> None:
        """Leave it leased to nobody for that time; then whoever has room gets it."""
        self._release(delivery, max(seconds, 0.0))

    def nack(self, delivery: Delivery, delay: float = 0.0) -> None:
        self._release(delivery, 0.0 if self.options.retry_policy is not None else delay)

    def begin(self, delivery: Delivery) -> None:
        """Nothing to do: Pub/Sub counts each delivery that isn't given back."""

    def give_back(self, delivery: Delivery) -> None:
        self._give_back([delivery])

    def _give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Of one queue. What a copy can't be published of is delivered once more, and counted."""
        now = time.monotonic()
        counted = []
        for delivery in deliveries:
            # Of one whose lease is lost there may be another delivery: no copy beside that.
            leased = self._leases.get(delivery.ack_id, 0.0) > now
            if isinstance(delivery, _Delivery) and delivery.counted and leased:
                counted.append(delivery)
            else:
                self._release(delivery, 0.0)
        if counted and self.options.ordering:  # a copy would lose its place
            for delivery in counted:
                self._release(delivery, 0.0)
        elif counted:
            self._jobs.run(functools.partial(self._try_to_publish_anew, counted))

    def _try_to_publish_anew(self, deliveries: Sequence[_Delivery]) -> None:
        now = time.monotonic()
        deliveries = [d for d in deliveries if self._leases.get(d.ack_id, 0.0) > now]
        if not deliveries:
            return
        try:
            self._publish_anew(deliveries)
        except (BrokerError, TooLarge) as exc:
            logger.debug("%d messages are given back as they are: %s", len(deliveries), exc)
            for delivery in deliveries:
                if delivery.ack_id in self._leases:  # not acked
                    self._release(delivery, 0.0)

    def _release(self, delivery: Delivery, seconds: float) -> None:
        subscription, ack_id = _parts(delivery)
        until = self._leases.pop(delivery.ack_id, 0.0)
        self._acks.nack(subscription, ack_id, min(seconds, _PARK), until)

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        # Where the subscription's own ack deadline isn't known, the first lease is taken for short.
        if not self.options.managed:
            seconds = max(seconds, self.options.lease_seconds)
        now = time.monotonic()
        lost = [d for d in deliveries if self._leases.get(d.ack_id, 0.0) < now]
        by_subscription: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            if delivery not in lost:
                by_subscription.setdefault(_parts(delivery)[0], []).append(delivery)
        for subscription, group in by_subscription.items():
            ids = {_parts(delivery)[1]: delivery for delivery in group}
            for part in fitting(ids):
                lost += self._extend(subscription, [ids[id] for id in part], seconds)
        for delivery in lost:
            self._leases.pop(delivery.ack_id, None)
        return lost

    def _extend(self, subscription: str, group: list[Delivery], seconds: float) -> list[Delivery]:
        now = time.monotonic()
        request = pb["ModifyAckDeadlineRequest"](
            subscription=subscription,
            ack_ids=[_parts(d)[1] for d in group],
            ack_deadline_seconds=min(max(round(seconds), 10), 600),
        )
        try:
            self.client.call("ModifyAckDeadline", request, subscription)
        except BrokerUnavailable:
            raise
        except BrokerError:
            # An exactly-once subscription says that a lease is lost; of many, not which one.
            if len(group) == 1:
                return group
            half = len(group) // 2
            first = self._extend(subscription, group[:half], seconds)
            return first + self._extend(subscription, group[half:], seconds)
        for delivery in group:
            if delivery.ack_id in self._leases:  # it may have been acked meanwhile
                self._leases[delivery.ack_id] = now + seconds
        return []

    # --- dead letters ---------------------------------------------------------------------------

    def dead_letter(self, delivery: Delivery, reason: str) -> None:
        spec = self.topology.spec(delivery.queue)
        if spec.temporary:
            self.ack([delivery])
        elif delivery.queue == dead_letter_queue(delivery.queue.removesuffix(".dead")):
            # Nothing dies in a dead letter; back at once, it would keep its consumer busy.
            self._release(delivery, delivery.lease_seconds)
        else:
            self._try_to_bury(delivery, reason, delivery.deliveries)

    def _try_to_bury(self, delivery: Delivery, reason: str, deliveries: int) -> None:
        """Without a dead letter to publish to the message stays, and the worker goes on."""
        try:
            self._bury(delivery, reason, deliveries)
        except (BrokerUnusable, TooLarge) as exc:
            logger.error(
                "message %s of queue %r could not be moved to the dead letter (%s) and stays in "
                "its queue: %s",
                delivery.message_id,
                delivery.queue,
                cut(reason, REASON_BYTES),
                exc,
            )
            self._release(delivery, delivery.lease_seconds)

    def bury(self, delivery: Delivery, reason: str) -> None:
        self._dead_letters.keep(delivery, reason, delivery.deliveries)

    def _bury(self, delivery: Delivery, reason: str, deliveries: int) -> None:
        self._dead_letters.keep(delivery, reason, deliveries)
        self.ack([delivery])

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
        """What waits in the queue, some minutes ago, as Cloud Monitoring has it. Raises NotFound.

        None where it can't be known: on an emulator, without the extra ``monitoring``, without the
        permission, and before all of the queue's subscriptions have been measured.
        """
        if self.options.emulator:
            return None
        return self._monitoring.depth(source.path for source in self.topology.sources(queue))

    def purge(self, queue: str) -> int:
        """Take out and ack what is ready, until nothing is left; how many that was.

        What is delayed goes as well, once it is delivered for the first time; not what is parked.
        """
        purged = 0
        self.flush(_CLOSE)
        for source in self.topology.sources(queue):
            while received := self._pull_now(source, _LOOK):
                request = pb["AcknowledgeRequest"](
                    subscription=source.path, ack_ids=[item.ack_id for item in received]
                )
                self.client.call("Acknowledge", request, source.path)
                purged += sum(source.takes(wire.parse(item.message)) for item in received)
        return purged

    def peek(self, queue: str, limit: int = 100) -> list[StoredMessage]:
        """What is ready. Looking leases it for a moment, and then gives it back."""
        deliveries = self.look(queue, limit)
        self._give_back(deliveries)
        self.flush(_CLOSE)
        return [
            StoredMessage(
                queue=queue,
                message_id=d.message_id,
                data=d.data,
                attributes=d.attributes,
                deliveries=d.attempts,
                published_at=d.published_at,
                priority=d.priority,
                state="ready",
            )
            for d in joined(deliveries)
        ]

    def push_to(
        self, queue: str, url: str, *, service_account: str = "", audience: str = ""
    ) -> None:
        """Have Pub/Sub post the queue's messages to ``url``; empty: back to pulling.

        Args:
            queue: Made if it doesn't exist.
            url: Of the push service's ``/push``.
            service_account: Whose OIDC token comes with each request; empty: none does.
            audience: What that token is for; empty: the URL.
        """
        self.topology.declare_queue(QueueSpec(queue))
        for source in self.topology.sources(queue):
            request = pb["ModifyPushConfigRequest"](subscription=source.path)
            request.push_config.push_endpoint = url
            if service_account:
                request.push_config.oidc_token.service_account_email = service_account
                request.push_config.oidc_token.audience = audience
            self.client.persist("ModifyPushConfig", request, source.path, self.options.timeout)
            self.topology.note_push(source.path, url)

    def redrive(self, queue: str, limit: int | None = None) -> int:
        moved = self._dead_letters.redrive(queue, limit)
        self.flush(_CLOSE)
        return moved

    def flush(self, timeout: float = _CLOSE) -> bool:
        """Wait until acks and unconfirmed messages are with Pub/Sub; False if that took longer."""
        deadline = time.monotonic() + timeout
        self.publisher.wait(timeout)
        # What failed is a job now, and a job may ack.
        done = self._jobs.flush(max(deadline - time.monotonic(), 0))
        return self._acks.flush(max(deadline - time.monotonic(), 0)) and done

    def close(self) -> None:
        for receiver in list(self._receivers):
            receiver.close()
        self._flush_at_end()
        self._jobs.stop(0.0)
        self._acks.stop(0.0)
        self._monitoring.close()
        self.client.close()

    def _flush_at_end(self) -> None:
        """Messages that were not confirmed are waited for as if they had been; all else for a moment."""
        if self.publisher.unsettled():
            if not self.flush(self.options.publish_timeout):
                logger.error("unconfirmed messages may not have been published")
        else:
            self.flush(_CLOSE)

    def _after_fork(self) -> None:
        """What is on its way, leased and received is the parent's."""
        self.publisher.after_fork()
        self._leases = {}
        self._receivers = weakref.WeakSet()


#: This process's brokers.
_brokers: weakref.WeakSet[PubSubBroker] = weakref.WeakSet()


def _in_child() -> None:
    for broker in list(_brokers):
        broker._after_fork()


os.register_at_fork(after_in_child=_in_child)


def _flush_all() -> None:
    """Acks and unconfirmed messages of brokers that nobody closed."""
    for broker in list(_brokers):
        broker._flush_at_end()


at_exit(_flush_all)


def _parts(delivery: Delivery) -> tuple[str, str]:
    """(subscription, Pub/Sub's own ack id)."""
    subscription, _, ack_id = delivery.ack_id.partition(" ")
    return subscription, ack_id


def _parkings(wait: float) -> int:
    """How often a message that was published so long before its time may have been parked."""
    return 0 if wait <= _HOLD else min(math.ceil(wait / _PARK), _PARKINGS)
