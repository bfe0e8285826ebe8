"""Messages received from Pub/Sub: which are handed out, and how each is settled while it is leased."""

from __future__ import annotations

import functools
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gwi_celery.background import Scheduler
from gwi_celery.brokers.base import (
    DEATH,
    DEATH_DELIVERIES,
    DEATH_KIND,
    DEATH_REASON,
    Delivery,
    OutgoingMessage,
)
from gwi_celery.brokers.pubsub import wire
from gwi_celery.brokers.pubsub.acks import Acknowledger, fitting
from gwi_celery.brokers.pubsub.client import AckIdsRefused, Client, pb
from gwi_celery.brokers.pubsub.early import Early
from gwi_celery.brokers.pubsub.options import PubSubOptions
from gwi_celery.brokers.pubsub.publisher import Publisher, chunks
from gwi_celery.brokers.pubsub.topology import Source, Topology
from gwi_celery.brokers.pubsub.topology.desired import RETENTION
from gwi_celery.errors import (
    BrokerError,
    BrokerUnavailable,
    BrokerUnusable,
    NotFound,
    TooLarge,
)

logger = logging.getLogger(__name__)

#: Seconds for which a message that arrives too early is held rather than deferred.
_HOLD = 4.0
#: Seconds: Pub/Sub's longest ack deadline, and so the longest a message is deferred at a time.
_PARK = 600.0
#: Number of deferred messages below which outdated ones are not dropped.
_MANY_DEFERRED = 10_000
#: Age, seconds, at which a deferred message is republished, so that waiting neither counts as failing
#: nor outlives the retention. Half the retention, if that is less.
_RENEWED_AT = 3000.0
#: Seconds for which another reader's messages are left to it.
_SPARE = 1.0


@dataclass(frozen=True)
class _Delivery(Delivery):
    """A delivery with what only this broker has to know."""

    #: Seconds since the epoch after which it is dropped.
    expires: float = math.inf
    #: Whether Pub/Sub counts how often it is delivered.
    counted: bool = False


class Deliveries:
    """The deliveries of one connection.

    ``bury`` is called with a message that was delivered too often, the reason and the count.
    """

    def __init__(
        self,
        client: Client,
        options: PubSubOptions,
        topology: Topology,
        publisher: Publisher,
        acks: Acknowledger,
        jobs: Scheduler,
        bury: Callable[[Delivery, str, int], None],
    ) -> None:
        self._client = client
        self._options = options
        self._topology = topology
        self._publisher = publisher
        self._acks = acks
        self._jobs = jobs
        self._bury = bury
        #: ack id -> monotonic time at which its lease runs out.
        self.leases: dict[str, float] = {}
        #: ack id -> the same, for deferred messages.
        self._deferred: dict[str, float] = {}
        #: Number of deferred messages at which the outdated ones are dropped next.
        self._many_deferred = _MANY_DEFERRED
        self.early = Early()

    def after_fork(self) -> None:
        """Forget the leases: they are the parent's."""
        self.leases, self._deferred = {}, {}

    def outstanding(self, ack_ids: Iterable[str]) -> set[str]:
        """Those of these ids that Pub/Sub may still count as outstanding."""
        now = time.monotonic()
        return {id for id in ack_ids if self.held_until(id) > now}

    def held_until(self, ack_id: str) -> float:
        """Monotonic time until which nobody else gets its message; 0.0: it was acked or given back."""
        return max(self.leases.get(ack_id, 0.0), self._deferred.get(ack_id, 0.0))

    def any_deferred(self, ack_ids: Iterable[str]) -> bool:
        """Whether any of these messages is deferred now."""
        now = time.monotonic()
        return any(self._deferred.get(id, 0.0) > now for id in ack_ids)

    def sort(
        self, source: Source, received: Iterable[Any], lease: float | None = None
    ) -> tuple[list[Delivery], list[tuple[float, Delivery]]]:
        """Sort received messages into those for now, and those to hold until a monotonic time.

        ``lease``: seconds that they are leased for, if not the subscription's ack deadline.

        The rest is settled here: foreign and expired messages are acked, messages that were delivered
        too often are dead-lettered, and those that are much too early are deferred.
        """
        ready: list[Delivery] = []
        held: list[tuple[float, Delivery]] = []
        unwanted: list[Delivery] = []
        now, wall = time.monotonic(), time.time()
        spec = self._topology.spec(source.queue)
        lease = lease or self._topology.desired.first_lease(spec)
        limit = self._topology.desired.max_deliveries(spec)
        for item in received:
            parsed = wire.parse(item.message)
            delivery = self._delivery(source, item, parsed, lease, now)
            # A queue's time to live limits the wait for a worker, not a message's own delay.
            age = wall - max(delivery.published_at, parsed.not_before)
            late = source.message_ttl is not None and age > source.message_ttl
            if (
                not source.takes(parsed)
                or parsed.expires <= wall
                or late
                or (delivery.published_at < source.since and wall >= source.spared_until)
            ):
                unwanted.append(delivery)
            elif delivery.published_at < source.since:
                # For a reader that was killed, or for one that still exists and may take it.
                self.release(delivery, _SPARE)
            elif parsed.not_before > wall:
                wait = parsed.not_before - wall
                again = self._again(wait, wall - delivery.published_at, item.delivery_attempt)
                if again is not None and again <= 0:
                    job = functools.partial(self._renew, delivery, parsed.not_before)
                    self._settle_later(delivery, job)
                    continue
                self.early.note(delivery, parsed.not_before)
                if again is None:
                    held.append((now + wait, self._until_due(delivery, wait)))
                else:
                    self.release(delivery, again)
            elif 0 < limit <= delivery.attempts and not spec.temporary:
                reason = f"delivered {limit} times without an ack"
                # A publisher may have written attributes of a death that never happened.
                own = {k: v for k, v in delivery.attributes.items() if k not in DEATH}
                dead = replace(delivery, attributes={**own, DEATH_KIND: "deliveries"})
                self._settle_later(delivery, functools.partial(self._bury, dead, reason, limit))
            else:
                ready.append(delivery)
        self.ack(unwanted)
        return ready, held

    def _again(self, wait: float, age: float, attempt: int) -> float | None:
        """Seconds to defer a message due in ``wait`` seconds; 0: republish it; None: hold it."""
        first = backoff = 0.0
        if self._options.retry_policy is not None:
            # Pub/Sub adds this to a lease that runs out, and more with each delivery.
            first, longest = self._options.retry_policy
            backoff = min(first * 2 ** min(max(attempt - 1, 0), 20), longest)
        if wait <= first + _HOLD:
            return None
        left = min(_RENEWED_AT, (self._options.retention or RETENTION) / 2) - age
        if left <= 0 or wait <= backoff + _HOLD:
            return 0.0
        return max(min(wait - backoff, _PARK, left), 1.0)

    def _until_due(self, delivery: _Delivery, wait: float) -> _Delivery:
        """The delivery, leased until it is due and for the usual time after that."""
        if wait <= _HOLD:
            return delivery
        seconds = min(wait + delivery.lease_seconds, _PARK)
        subscription, ack_id = _parts(delivery)
        self._acks.nack(subscription, ack_id, seconds, self.leases[delivery.ack_id])
        now = time.monotonic()
        self.leases[delivery.ack_id] = now + seconds
        return replace(delivery, leased_at=now + seconds - delivery.lease_seconds)

    def _delivery(
        self, source: Source, item: Any, parsed: wire.Received, lease: float, now: float
    ) -> _Delivery:
        ack_id = f"{source.path} {item.ack_id}"
        self.leases[ack_id] = now + lease
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

    def _settle_later(self, delivery: Delivery, job: Callable[[], object]) -> None:
        """Settle it in the background, unless its lease may have run out by then.

        If that fails, the message is redelivered when its lease runs out.
        """

        def settle() -> None:
            try:
                if time.monotonic() < delivery.held_until():
                    job()
                    return
            except (BrokerError, TooLarge) as exc:
                logger.warning(
                    "message %s of queue %r can't be settled now, and will be redelivered: %s",
                    *(delivery.message_id, delivery.queue, exc),
                )
            self.forget([delivery])

        self._jobs.run(settle)

    # --- settling -------------------------------------------------------------------------------

    def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Not waited for; retried while the lease lasts. A lost lease isn't reported."""
        ended = [(*_parts(each), self.leases.pop(each.ack_id, 0.0)) for each in deliveries]
        if ended:
            self._acks.ack(*ended, last=not self.leases)

    def forget(self, deliveries: Iterable[Delivery]) -> None:
        """Drop deliveries whose lease has, or may have, run out: they will be redelivered."""
        for delivery in deliveries:
            self.leases.pop(delivery.ack_id, None)

    def release(self, delivery: Delivery, seconds: float) -> None:
        """Have it redelivered after that time, 600 s at most."""
        subscription, ack_id = _parts(delivery)
        until = self.leases.pop(delivery.ack_id, 0.0)
        if seconds > 0:
            now = time.monotonic()
            if len(self._deferred) >= self._many_deferred:
                for id, due in list(self._deferred.items()):  # other threads add to it
                    if due <= now:
                        self._deferred.pop(id, None)
                self._many_deferred = max(_MANY_DEFERRED, 2 * len(self._deferred))
            self._deferred[delivery.ack_id] = now + min(seconds, _PARK)
        self._acks.nack(subscription, ack_id, min(seconds, _PARK), until, last=not self.leases)

    def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Give back messages of one queue. If a copy can't be published, the redelivery counts."""
        now = time.monotonic()
        counted = []
        for delivery in deliveries:
            # If its lease is lost there may be another delivery: no copy in addition.
            leased = self.leases.get(delivery.ack_id, 0.0) > now
            if isinstance(delivery, _Delivery) and delivery.counted and leased:
                counted.append(delivery)
            else:
                self.release(delivery, 0.0)
        if counted and self._options.ordering:  # a copy would lose its place
            for delivery in counted:
                self.release(delivery, 0.0)
        elif counted:
            self._jobs.run(functools.partial(self._try_to_publish_anew, counted))

    def publish_now(self, deliveries: Sequence[Delivery]) -> None:
        """Republish deferred or held messages of a queue, due now. Raises BrokerError and TooLarge."""
        taken = [d for d in deliveries if isinstance(d, _Delivery)]
        if not taken:
            return
        self._hold(taken)
        try:
            self._publish_anew(taken)
        except (BrokerError, TooLarge):
            for delivery in taken:
                if delivery.ack_id in self.leases:  # not acked
                    self._deferred[delivery.ack_id] = self.leases.pop(delivery.ack_id)
            raise

    def drop(self, delivery: Delivery) -> None:
        """Ack a deferred or held message."""
        self._hold([delivery])
        self.ack([delivery])

    def _hold(self, deliveries: Sequence[Delivery]) -> None:
        """Treat deferred messages as leased until they are due."""
        for delivery in deliveries:
            until = self._deferred.pop(delivery.ack_id, None)
            if until is not None:
                self.leases[delivery.ack_id] = until

    def _try_to_publish_anew(self, deliveries: Sequence[_Delivery]) -> None:
        now = time.monotonic()
        deliveries = [d for d in deliveries if self.leases.get(d.ack_id, 0.0) > now]
        if not deliveries:
            return
        try:
            self._publish_anew(deliveries)
        except (BrokerError, TooLarge) as exc:
            logger.debug("%d messages are given back without a copy: %s", len(deliveries), exc)
            for delivery in deliveries:
                if delivery.ack_id in self.leases:  # not acked
                    self.release(delivery, 0.0)

    def _renew(self, delivery: _Delivery, not_before: float) -> None:
        """Republish a message that waits for its ETA; if that fails, defer it once more."""
        try:
            self._publish_anew([delivery], not_before)
        except (BrokerError, TooLarge) as exc:
            logger.debug("message %s is deferred once more: %s", delivery.message_id, exc)
            self.release(delivery, max(not_before - time.time(), 1.0))

    def _publish_anew(self, deliveries: Sequence[_Delivery], not_before: float = 0.0) -> None:
        """Replace a queue's messages by copies, whose deliveries Pub/Sub counts from 1."""
        now = time.time()
        due = max(not_before, now)
        copies = []
        for delivery in deliveries:
            ttl = None if delivery.expires == math.inf else max(delivery.expires - due, 0.001)
            message = OutgoingMessage(
                delivery.data, delivery.attributes, delivery.priority, delay=due - now, ttl=ttl
            )
            copies.append(
                self._publisher.made(
                    "", delivery.queue, message, merge=True, attempts=delivery.attempts
                )
            )
        # To this queue alone, whichever exchange brought the messages.
        topic = self._topology.route("", deliveries[0].queue)
        for chunk in chunks(list(enumerate(copies))):
            self._publisher.send(topic, [made for _, made in chunk])
            self.ack([deliveries[n] for n, _ in chunk])

    # --- leases ---------------------------------------------------------------------------------

    def extend(self, deliveries: Sequence[Delivery], seconds: float) -> list[Delivery]:
        """As :meth:`Broker.extend`."""
        # If the subscription's ack deadline is unknown, assume a short first lease.
        if not self._options.managed:
            seconds = max(seconds, self._options.lease_seconds)
        now = time.monotonic()
        lost = [d for d in deliveries if self.leases.get(d.ack_id, 0.0) < now]
        by_subscription: dict[str, list[Delivery]] = {}
        for delivery in deliveries:
            if delivery not in lost:
                by_subscription.setdefault(_parts(delivery)[0], []).append(delivery)
        for subscription, group in by_subscription.items():
            ids = {_parts(delivery)[1]: delivery for delivery in group}
            for part in fitting(ids):
                lost += self._extend(subscription, [ids[id] for id in part], seconds)
        for delivery in lost:
            self.leases.pop(delivery.ack_id, None)
        return lost

    def _extend(self, subscription: str, group: list[Delivery], seconds: float) -> list[Delivery]:
        now = time.monotonic()
        lost: list[Delivery] = []
        whole = min(max(round(seconds), 10), 600)
        request = pb["ModifyAckDeadlineRequest"](
            subscription=subscription,
            ack_ids=[_parts(d)[1] for d in group],
            ack_deadline_seconds=whole,
        )
        try:
            self._client.call("ModifyAckDeadline", request, subscription)
        except (BrokerUnavailable, BrokerUnusable):
            raise
        except NotFound:
            return group  # the subscription was deleted, and its messages with it
        except AckIdsRefused as exc:
            lost = [d for d in group if _parts(d)[1] in exc.lost]
            group = [d for d in group if d not in lost]
        except BrokerError:
            # A lease may be lost, and nothing says which one: ask for each half.
            if len(group) == 1:
                return group
            half = len(group) // 2
            first = self._extend(subscription, group[:half], seconds)
            return first + self._extend(subscription, group[half:], seconds)
        for delivery in group:
            if delivery.ack_id in self.leases:  # it may have been acked meanwhile
                self.leases[delivery.ack_id] = now + min(seconds, whole)
        return lost


def _parts(delivery: Delivery) -> tuple[str, str]:
    """(subscription, Pub/Sub's own ack id)."""
    subscription, _, ack_id = delivery.ack_id.partition(" ")
    return subscription, ack_id


def _parkings(wait: float) -> int:
    """How often a message with that delay may have been deferred."""
    return 0 if wait <= _HOLD else math.ceil(min(wait, _RENEWED_AT) / _PARK)
