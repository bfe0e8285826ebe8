"""Kombu's channel methods on the broker seam: publishing, consuming and acks.

State lives on the instance: a channel knows the queues it consumes and the deliveries it holds. When it
is closed, it gives back what it holds. It touches nothing of another channel.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from gwi_celery.authority import SIGNATURE, Authority
from gwi_celery.batch import current_batch
from gwi_celery.brokers.base import Broker, Delivery, OutgoingMessage
from gwi_celery.errors import (
    BrokerError,
    MalformedMessage,
    NotFound,
    StoreError,
    TooLarge,
)
from gwi_celery.telemetry.events import emit
from gwi_celery.text import safe_text
from gwi_celery.transport import envelope, handover
from gwi_celery.transport.death import Death, deceased
from gwi_celery.transport.declaring import DeclaringChannel, not_found
from gwi_celery.transport.leases import LEASE_PROPERTY
from gwi_celery.transport.message import Message as _Message
from gwi_celery.transport.settlement import Settlement

if TYPE_CHECKING:
    from gwi_celery.transport.base import Transport

logger = logging.getLogger(__name__)

#: Messages taken at a time by a consumer without a prefetch limit.
_UNLIMITED_BATCH = 100

#: Seconds for which messages are handed over before the event loop acks them. Measured with a server
#: 20 ms away and a solo pool at prefetch 4: tasks of 5 ms run at 107/s, or at 80/s if all four are handed
#: over first.
_SLICE = 0.002

#: First and longest delay, seconds, of a requeued message; it doubles with each delivery, so that a
#: task that is always requeued doesn't spin.
_REQUEUE_FIRST, _REQUEUE_MAX = 0.0, 60.0

#: Seconds until the redelivery of a message whose signature could not be checked, as the store was
#: unavailable.
_CHECK_AGAIN = 5.0


@dataclass(frozen=True)
class _Consumer:
    queue: str
    callback: Callable[[_Message], object]
    no_ack: bool

    def take(self, message: _Message, by_worker: bool) -> None:
        if by_worker:
            handover.hand_over(message, self.callback)
        else:
            message.begun = not _takes_for_later(self.callback)
            self.callback(message)


@dataclass(frozen=True)
class _Held:
    delivery: Delivery
    message: _Message


class Prefetch:
    """How many unacked messages this channel may hold (0: any number)."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self.prefetch_count = 0

    def can_consume(self) -> bool:
        return self.capacity() > 0

    def capacity(self) -> int:
        if not self.prefetch_count:
            return _UNLIMITED_BATCH
        return max(self.prefetch_count - len(self._channel.held), 0)


class Channel(DeclaringChannel):
    """One channel of a connection. Used by one thread, as Kombu's channels are."""

    Message = _Message
    supports_fanout = True
    do_restore = False
    #: Higher is more urgent, as in AMQP.
    max_priority = 9

    closed: bool

    def __init__(self, connection: Transport, **kwargs: Any) -> None:
        super().__init__(connection, **kwargs)
        self._pid = os.getpid()
        self._consuming: dict[str, _Consumer] = {}
        #: Delivery tag -> unacked message.
        self.held: dict[str, _Held] = {}
        #: Held messages that are not handed over yet.
        self._next: deque[tuple[_Consumer, Delivery, _Message]] = deque()
        self._prefetch = Prefetch(self)

    @property
    def authority(self) -> Authority | None:
        """The app's authority: what it may send and accept."""
        return self.connection.authority

    @property
    def qos(self) -> Prefetch:
        return self._prefetch

    # --- publishing ---------------------------------------------------------------------------

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **kwargs: Any
    ) -> None:
        properties = message["properties"]
        properties.setdefault("delivery_info", {}).update(
            exchange=exchange or "", routing_key=routing_key
        )
        data, attributes = envelope.encode(message)
        if self.authority is not None:
            signature = self.authority.sign(data, routing_key or exchange or "")
            if signature is not None:
                attributes[SIGNATURE] = signature
        # A worker revokes an expired task, so that its caller and its chord are told. The broker would
        # drop it silently.
        task = "task" in (message.get("headers") or {})
        expiration = None if task else properties.get("expiration")
        outgoing = OutgoingMessage(
            data=data,
            attributes=attributes,
            priority=self._get_message_priority(message),
            delay=_delay(message.get("headers") or {}),
            ttl=int(expiration) / 1000 if expiration else None,
            reply=envelope.is_reply(message, routing_key or ""),
            event=envelope.is_event(message, exchange or ""),
        )
        batch = current_batch()
        address = (exchange or "", routing_key or "")
        if batch is None or not batch.add(self._broker, (*address, outgoing)):
            self._broker.publish(*address, outgoing)

    # --- consuming ----------------------------------------------------------------------------

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[_Message], object],
        consumer_tag: str,
        **kwargs: Any,
    ) -> None:
        try:
            self.connection.receiver.subscribe(queue, bulk=bool(no_ack))
        except NotFound as exc:
            raise not_found("queue", queue, "Channel.basic_consume") from exc
        self._consuming[consumer_tag] = _Consumer(queue, callback, bool(no_ack))
        self.connection.wake()

    def basic_cancel(self, consumer_tag: str) -> None:
        consumer = self._consuming.pop(consumer_tag, None)
        if consumer is None or os.getpid() != self._pid:
            return
        waiting = [delivery for to, delivery, _ in self._next if to is consumer]
        self._next = deque(item for item in self._next if item[0] is not consumer)
        for delivery in waiting:
            self._return(delivery.ack_id)
        if not self.connection.consuming_from(consumer.queue):
            self.connection.receiver.unsubscribe(consumer.queue)

    def consuming_from(self, queue: str) -> bool:
        return any(c.queue == queue for c in self._consuming.values())

    def basic_get(self, queue: str, no_ack: bool = False, **kwargs: Any) -> _Message | None:
        for _, message in self._accept(self.connection.receiver.poll(queue, 1), no_ack):
            message.begun = True
            return message
        return None

    def deliver_ready(self, most: int) -> int:
        """Hand over up to ``most`` ready messages that fit the prefetch limit; 0: there were none.

        It stops early if handing over takes long, as it does where tasks run in this thread: Celery acks
        messages once the event loop continues, and only then their places are free.

        Queues take turns: the one served last is polled last. Room for several messages is shared
        between them; an unused share is available to all at the next call.
        """
        taken = 0 if self._next else self._take(most)
        handed_over, until = 0, time.monotonic() + _SLICE
        while self._next and handed_over < most:
            consumer, delivery, message = self._next.popleft()
            handed_over += 1
            if self._still_ours(delivery):
                consumer.take(message, self.connection.serves_worker)
                if time.monotonic() > until:
                    break
        return max(taken, handed_over)

    def _take(self, most: int) -> int:
        """Poll for messages; hand over those of consumers that don't ack, and hold the others."""
        taken = 0
        # A worker's tasks report when they begin; other consumers begin at once.
        begun = not self.connection.serves_worker
        consumers = list(self._consuming.items())
        for n, (tag, consumer) in enumerate(consumers):
            room = self._room(consumer)
            limit = min(math.ceil(room / (len(consumers) - n)), most - taken)
            if not limit or tag not in self._consuming:
                continue
            deliveries = self.connection.receiver.poll(
                consumer.queue, limit, room=room, begun=begun
            )
            if deliveries:
                self._consuming[tag] = self._consuming.pop(tag)
            taken += len(deliveries)
            accepted = self._accept(deliveries, consumer.no_ack)
            if accepted and not self._room(consumer):
                # A task may now keep this thread busy: leave further messages to other consumers.
                self.connection.return_unwanted()
            if not consumer.no_ack:
                self._next.extend((consumer, *pair) for pair in accepted)
                continue
            for _, message in accepted:
                consumer.take(message, self.connection.serves_worker)
        return taken

    def has_room(self, queue: str) -> bool:
        """Whether a message of ``queue`` could be handed over now."""
        return any(c.queue == queue and self._room(c) > 0 for c in self._consuming.values())

    def queues(self) -> set[str]:
        """The queues that it consumes."""
        return {consumer.queue for consumer in self._consuming.values()}

    def _room(self, consumer: _Consumer) -> int:
        if self.authority is not None and consumer.queue in self.authority.pauses.queues:
            return 0
        return _UNLIMITED_BATCH if consumer.no_ack else self._prefetch.capacity()

    def _accept(self, deliveries: list[Delivery], no_ack: bool) -> list[tuple[Delivery, _Message]]:
        """Decode deliveries and hold them from now on, or ack them; returns those to hand over.

        Malformed messages are dead-lettered; deliveries whose lease may be lost are left alone.
        """
        accepted = []
        for delivery in deliveries:
            try:
                accepted.append((delivery, handover.decode(delivery, self)))
            except MalformedMessage as exc:
                reason = handover.why_refused(exc)
                logger.error(
                    "message %s of queue %r is %s; it is kept in the dead letter",
                    *(delivery.message_id, delivery.queue, reason),
                )
                _dead_letter(self._broker, deceased(delivery, Death.refused(exc)), reason)
            except StoreError as exc:  # its signature can't be checked now
                logger.error("message %s is redelivered later: %s", delivery.message_id, exc)
                with contextlib.suppress(BrokerError):
                    self._broker.nack(delivery, _CHECK_AGAIN)
        if no_ack:
            return _acked(self._broker, accepted)
        for delivery, message in accepted:
            self.held[delivery.ack_id] = _Held(delivery, message)
            message.properties[LEASE_PROPERTY] = self.connection.leases.keep(delivery)
        return accepted

    def _still_ours(self, delivery: Delivery) -> bool:
        """Whether a held message may be handed over. It is dropped if its lease may be lost."""
        if self.connection.leases.holds(delivery):
            return True
        if self._settle(delivery.ack_id) is not None:
            logger.warning(
                "message %s of queue %r is not handed over, as its lease may have run out: it is "
                "redelivered",
                delivery.message_id,
                delivery.queue,
            )
        return False

    def begin(self, delivery_tag: str) -> None:
        """Count an attempt of the message with this tag."""
        held = self.held.get(delivery_tag)
        if held is None:
            return
        try:
            self._broker.begin(held.delivery)
        except BrokerError as exc:
            logger.warning(
                "an attempt of message %s could not be counted: %s", held.delivery.message_id, exc
            )

    def postpone(self, delivery_tag: str, seconds: float) -> bool:
        """Publish a delayed copy of the message with this tag. Returns whether that was possible."""
        held = self.held.get(delivery_tag)
        if held is None:
            return False
        delivery = held.delivery
        copy = OutgoingMessage(delivery.data, delivery.attributes, delivery.priority, delay=seconds)
        try:
            self._broker.publish("", delivery.queue, copy)
        except (BrokerError, TooLarge) as exc:
            logger.warning("message %s waits in the worker's memory: %s", delivery.message_id, exc)
            return False
        return True

    # --- ack verbs ----------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: str, multiple: bool = False) -> None:
        tags = [delivery_tag]
        if multiple:
            earlier = list(self.held)
            tags = earlier[: earlier.index(delivery_tag) + 1] if delivery_tag in self.held else []
        settled = [held.delivery for held in map(self._settle, tags) if held is not None]
        try:
            if settled:
                self._broker.ack(settled)
                emit(Settlement.ACKED.text, task_id="")
        finally:
            self._room_for_more()

    def basic_reject(self, delivery_tag: str, requeue: bool = False) -> None:
        held = self._settle(delivery_tag)
        if held is None:
            return
        try:
            if Settlement.of_reject(requeue) is Settlement.NACKED:
                self._broker.nack(held.delivery, requeue_delay(held.delivery.deliveries))
                emit(Settlement.NACKED.text, task_id="")
            else:
                described = envelope.described(
                    held.delivery, held.message.headers, held.message.source
                )
                _dead_letter(
                    self._broker, deceased(described, held.message.cause), held.message.reason
                )
        finally:
            self._room_for_more()

    def basic_recover(self, requeue: bool = False) -> None:
        for tag in list(self.held):
            self.basic_reject(tag, requeue=True)

    def basic_qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> None:
        self._prefetch.prefetch_count = prefetch_count
        self.connection.wake()

    def _room_for_more(self) -> None:
        """A place is free: fetch the next message while the event loop is still busy."""
        if os.getpid() != self._pid or self.closed:
            return
        for consumer in list(self._consuming.values()):
            room = 0 if consumer.no_ack else self._room(consumer)
            if room:
                self.connection.receiver.want(consumer.queue, room)
        self.connection.wake()

    def _settle(self, delivery_tag: str) -> _Held | None:
        if os.getpid() != self._pid:
            return None  # a forked child holds nothing: the deliveries belong to its parent
        held = self.held.pop(delivery_tag, None)
        if held is not None:
            self.connection.leases.drop(held.delivery)
        return held

    # --- end ----------------------------------------------------------------------------------

    def _return(self, delivery_tag: str) -> None:
        """Give back a held message. If it was begun, that counts as an attempt."""
        held = self._settle(delivery_tag)
        if held is None:
            return
        try:
            if held.message.begun:
                self._broker.nack(held.delivery)
            else:
                self._broker.give_back(held.delivery)
        except BrokerError as exc:
            logger.warning(
                "could not give back message %s (%s): it is redelivered when its lease of %g s runs out",
                held.delivery.message_id,
                exc,
                held.delivery.lease_seconds,
            )

    def close(self) -> None:
        """Cancel the consumers and give back all unacked messages at once.

        Each that was begun counts as an attempt; the others don't.
        """
        if self.closed:
            return
        self.closed = True
        connection = self.connection
        if os.getpid() == self._pid:
            for tag in list(self._consuming):
                try:
                    self.basic_cancel(tag)
                except BrokerError as exc:  # its receiver is closed with the connection
                    logger.warning("could not end a consumer: %s", exc)
            for tag in list(self.held):
                self._return(tag)
            self._next.clear()
        if connection is not None:
            connection.close_channel(self)
        self.exchange_types = None


def _acked(
    broker: Broker, accepted: list[tuple[Delivery, _Message]]
) -> list[tuple[Delivery, _Message]]:
    """Ack messages before any is handed over, which may take long; returns those whose lease held."""
    now = time.monotonic()
    ours = [pair for pair in accepted if now < pair[0].held_until()]
    lost = {d.ack_id for d in broker.ack([delivery for delivery, _ in ours])}
    return [pair for pair in ours if pair[0].ack_id not in lost]


def _dead_letter(broker: Broker, delivery: Delivery, reason: str) -> None:
    """Dead-letter a message; if that fails now, it is redelivered later."""
    try:
        broker.dead_letter(delivery, reason)
        settlement = Settlement.DEAD_LETTERED
    except BrokerError as exc:
        logger.error(
            "message %s of queue %r can't be dead-lettered now (%s): %s",
            delivery.message_id,
            delivery.queue,
            exc,
            safe_text(reason, 200),
        )
        settlement = Settlement.NACKED
        with contextlib.suppress(BrokerError):  # then it is redelivered when its lease has run out
            broker.nack(delivery, _REQUEUE_MAX)
    emit(settlement.text, task_id="")


def _takes_for_later(callback: Callable[..., object]) -> bool:
    """Whether it belongs to a worker without :func:`gwi_celery.setup`, which never calls ``begin()``."""
    return getattr(getattr(callback, "__self__", None), "on_message", None) is not None


def requeue_delay(deliveries: int) -> float:
    """Seconds a requeued message waits: none the first time, then 1, 2, 4, ... up to 60."""
    if deliveries <= 1:
        return _REQUEUE_FIRST
    return float(min(2 ** min(deliveries - 2, 10), _REQUEUE_MAX))


def _delay(headers: dict[str, Any]) -> float:
    """Seconds until the message's ETA: the broker keeps it until then, not a worker's memory."""
    eta = headers.get("eta")
    if not isinstance(eta, str):
        return 0.0
    try:
        when = datetime.fromisoformat(eta.replace("Z", "+00:00"))
    except ValueError:
        return 0.0  # the worker decides: what is not a time at all, it refuses
    if when.tzinfo is None:
        return 0.0  # in the app's time zone, which only the worker knows
    return max((when - datetime.now(timezone.utc)).total_seconds(), 0.0)
